"""Demonstrations: which tokens of a conversation are the assistant's, and what becomes of one that is too long."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from prompt_kit import BOS, EOS, ids, make_tokenizer, write_rows

from online_dpo.config.preferences import PairsSection
from online_dpo.data.encoding import AnswerEncoder
from online_dpo.data.preferences import PairSource, TokenLimits
from online_dpo.errors import DataError
from online_dpo.store.tables import from_parquet, to_parquet
from online_dpo.types import Demonstration

CHATML = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }} {% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
MARKED = (
    "{% for m in messages %}[{{ m.role }}]{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{{ eos_token }}"
    "{% endgeneration %}{% else %}{{ m.content }}{{ eos_token }}{% endif %} {% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
FORGETFUL = "{% for m in messages %}[{{ m.role }}]{% if loop.last %}think {% endif %}{{ m.content }}{% endfor %}" + (
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
TALK = [("system", "be kind"), ("user", "hi"), ("assistant", "hello"), ("user", "sum?"), ("assistant", "4")]


def chat(*turns: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in turns]


def load(path: Path, *, template: str = CHATML, limits: dict[str, int] | None = None, **spec: Any) -> PairSource:
    section = PairsSection(source=str(path), format="demonstrations", **spec)
    encoder = AnswerEncoder(make_tokenizer(template=template), {}, eos_token_ids=(EOS,), append_eos=section.append_eos)
    sizes = {"max_prompt_tokens": 64, "max_completion_tokens": 64, **(limits or {})}
    token_limits = TokenLimits(**sizes, drop_truncated=section.truncated == "drop")
    return PairSource.load(section, field="pairs", encoder=encoder, limits=token_limits, seed=0)


def one(path: Path, turns: list[tuple[str, str]], **options: Any) -> Demonstration:
    source = load(
        write_rows(path / "x.jsonl", [{"messages": chat(*turns)}]), prompt=None, completion="messages", **options
    )
    [item] = source.head(1).items
    assert isinstance(item, Demonstration)
    [again] = from_parquet(to_parquet([item]), Demonstration)
    assert again == item
    return item


@pytest.mark.parametrize("template", [CHATML, MARKED], ids=["by prefixes", "marked by the template"])
def test_the_loss_is_of_the_assistant_s_turns_and_their_ends_alone(template: str, tmp_path: Path) -> None:
    """Every token by hand. Would catch a user's token that is learnt, an answer whose end is not, and the whitespace
    behind it; what comes after the last answer is nobody's."""
    item = one(tmp_path, [*TALK, ("user", "bye")], template=template)
    assert item.prompt.token_ids == (*ids("[system]be kind"), EOS, *ids(" [user]hi"), EOS, *ids(" [assistant]"))
    pieces = [
        (True, (*ids("hello"), EOS)),
        (False, (*ids(" [user]sum?"), EOS, *ids(" [assistant]"))),
        (True, (*ids("4"), EOS)),
    ]
    assert item.completion.token_ids == tuple(token for _, piece in pieces for token in piece)
    assert item.trained == tuple(flag for flag, piece in pieces for _ in piece)
    assert item.prompt.content == chat(*TALK[:2]) and list(item.turns) == chat(*TALK[2:])


def test_a_prompt_and_its_completion_as_text_and_as_a_chat(tmp_path: Path) -> None:
    rows = [{"prompt": "Is it?", "completion": " yes"}]
    [item] = load(write_rows(tmp_path / "t.jsonl", rows), append_eos=True).head(1).items
    assert (item.prompt.token_ids, item.completion.token_ids) == ((BOS, *ids("Is it?")), (*ids(" yes"), EOS))
    assert item.trained == (True,) * 5 and item.turns == ()
    assert from_parquet(to_parquet([item]), Demonstration) == [item]
    rows = [{"prompt": chat(*TALK[:4]), "completion": "4"}]
    [item] = load(write_rows(tmp_path / "c.jsonl", rows), limits={"max_prompt_tokens": 99}).head(1).items
    assert item.completion.token_ids == (*ids("4"), EOS) and all(item.trained)  # an earlier answer is the prompt's
    assert list(item.turns) == chat(TALK[4])


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (FORGETFUL, r"does not begin a conversation as it begins the same one without its last messages, so that the"),
        (MARKED.replace("m.role == 'assistant'", "loop.last"), r"marks 1 stretches .* the assistant has 2 turns, so"),
    ],
)
def test_a_template_that_does_not_say_where_turns_are_is_refused(template: str, message: str, tmp_path: Path) -> None:
    """Would catch training on the tokens of a user."""
    with pytest.raises(DataError, match=rf"^pairs\.source is .*refuses line 1 \(.*{message}.*chat_template_kwargs"):
        one(tmp_path, TALK, template=template)


def test_what_is_too_long_or_no_demonstration_is_counted(tmp_path: Path) -> None:
    """A conversation loses whole exchanges; only a first answer is cut, and then without an end."""
    long_first = [("user", "hi"), ("assistant", "123456789"), ("user", "x"), ("assistant", "y")]
    conversations = [
        TALK,
        long_first,
        [("user", "hi")],
        [("user", "hi"), ("assistant", " ")],
        [("user", "z" * 60), TALK[2]],
    ]
    path = write_rows(tmp_path / "x.jsonl", [{"messages": chat(*turns)} for turns in conversations])
    options: dict[str, Any] = {"prompt": None, "completion": "messages", "limits": {"max_completion_tokens": 8}}
    draw = load(path, **options).head(None)
    first, second = draw.items
    assert (first.completion.token_ids, first.completion.text) == ((*ids("hello"), EOS), "hello")
    assert list(first.turns) == chat(TALK[2]) and second.completion.token_ids == ids("12345678")
    assert "".join(second.completion.text.split()) == "12345678" and all((*first.trained, *second.trained))
    assert +Counter(draw.outcomes) == {"kept": 2, "no_common_prompt": 1, "empty": 1, "prompt_too_long": 1}
    assert draw.counts["num_truncated_answers"] == 3  # one of the first conversation, both of the second
    strict = load(path, **options, truncated="drop")
    with pytest.raises(DataError, match=r"0 usable of 5 rows \(dropped: .*truncated 2"):
        strict.head(None)


def test_a_boundary_inside_a_token_is_split_and_counted(tmp_path: Path) -> None:
    """A tokenizer that joins the end of a turn with the beginning of the next one."""
    from tokenizers import Regex, Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Split
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<s>": 0, "</s>": 1, ":a": 2, **{token: 3 + i for i, token in enumerate("ab:|")}}
    bare = Tokenizer(WordLevel(vocabulary, unk_token="|"))
    bare.pre_tokenizer = Split(Regex(":a|."), "isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bare, bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = (
        "{% for m in messages %}|:{{ m.content }}{% endfor %}{% if add_generation_prompt %}|:{% endif %}"
    )
    section = PairsSection(
        source=str(tmp_path / "x.jsonl"), format="demonstrations", prompt=None, completion="messages"
    )
    write_rows(tmp_path / "x.jsonl", [{"messages": chat(("user", "b"), ("assistant", "a"))}])
    encoder = AnswerEncoder(tokenizer, {}, eos_token_ids=(1,), append_eos=True)
    limits = TokenLimits(max_prompt_tokens=9, max_completion_tokens=9)
    draw = PairSource.load(section, field="pairs", encoder=encoder, limits=limits, seed=0).head(1)
    [item] = draw.items
    assert (item.prompt.token_ids, item.completion.token_ids) == ((6, 5, 4, 6, 5), (3, 1))  # |:b|: and a, not :a
    assert draw.counts["num_split_boundaries"] == 1
