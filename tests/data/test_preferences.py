"""Data sets of preferences: what becomes of a row, which rows a round gets, and what is told about the others."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from prompt_kit import BOS, EOS, ids, make_tokenizer, write_rows

from online_dpo.config.preferences import PairsSection
from online_dpo.data.drawing import Cursor
from online_dpo.data.encoding import AnswerEncoder
from online_dpo.data.preferences import PairSource, TokenLimits
from online_dpo.errors import DataError
from online_dpo.types import Labelled, Pair

CHATML = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content | trim }}{{ eos_token }} {% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
USER = {"role": "user", "content": "hi"}


def load(
    path: Path,
    *,
    tokenizer: Any = None,
    max_prompt_tokens: int = 64,
    max_completion_tokens: int = 64,
    append_eos: bool = False,
    **spec: Any,
) -> PairSource:
    section = PairsSection(source=str(path), append_eos=append_eos, **spec)
    tokenizer = tokenizer or make_tokenizer(template=CHATML)
    encoder = AnswerEncoder(tokenizer, {}, eos_token_ids=(EOS,), append_eos=append_eos)
    limits = TokenLimits(
        max_prompt_tokens=max_prompt_tokens,
        max_completion_tokens=max_completion_tokens,
        drop_truncated=section.truncated == "drop",
    )
    return PairSource.load(section, field="pairs", encoder=encoder, limits=limits, seed=0)


def one(tmp_path: Path, row: dict[str, Any], **options: Any) -> Any:
    """What a source of this one row gives."""
    [item] = load(write_rows(tmp_path / "x.jsonl", [row]), **options).head(1).items
    return item


def said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def tokens(pair: Pair) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    return pair.prompt.token_ids, pair.chosen.token_ids, pair.rejected.token_ids


# ---- a row


@pytest.mark.parametrize("append_eos", [False, True])
@pytest.mark.parametrize("adds_eos", [False, True], ids=["plain tokenizer", "tokenizer that ends all it is given"])
def test_plain_text_gets_one_bos_and_no_eos_that_was_not_asked_for(
    append_eos: bool, adds_eos: bool, tmp_path: Path
) -> None:
    """Would catch a BOS inside the sequence, and an end of sequence that a tokenizer appends unasked."""
    row = {"prompt": "Is it?", "chosen": " yes", "rejected": " no</s>"}
    pair = one(tmp_path, row, append_eos=append_eos, tokenizer=make_tokenizer(eos=adds_eos))
    end = (EOS,) if append_eos else ()
    assert tokens(pair) == ((BOS, *ids("Is it?")), (*ids(" yes"), *end), (*ids(" no"), EOS))
    assert (pair.prompt.text, pair.chosen.text, pair.rejected.text) == ("Is it?", " yes", " no</s>")
    unknown = (pair.margin, pair.probability, pair.chosen.sampler_logps, pair.chosen.policy_version)
    assert unknown == (None,) * 4 and not pair.chosen.is_sampled


@pytest.mark.parametrize("answers", ["text", "messages"])
def test_a_chat_is_what_the_template_makes_of_the_whole(answers: str, tmp_path: Path) -> None:
    """Would catch a doubled header, an end token left out, and one more token (the template's blank) behind it."""
    chosen, rejected = (
        ("yes", " no ") if answers == "text" else ([said("assistant", "yes")], [said("assistant", " no ")])
    )
    tokenizer = make_tokenizer(template=CHATML)
    prompt = [USER, said("assistant", "oh"), said("user", "so?")]
    pair = one(tmp_path, {"prompt": prompt, "chosen": chosen, "rejected": rejected}, append_eos=True)
    assert tokens(pair)[1:] == ((*ids("yes"), EOS), (*ids("no"), EOS))
    for answer in (pair.chosen, pair.rejected):
        whole = tokenizer.apply_chat_template([*prompt, said("assistant", answer.text)], tokenize=False)
        expected = tuple(tokenizer(whole, add_special_tokens=False)["input_ids"])
        assert (*pair.prompt.token_ids, *answer.token_ids, *ids(" ")) == expected


def test_a_template_without_an_end_token_gives_none(tmp_path: Path) -> None:
    row = {"prompt": [USER], "chosen": "yes", "rejected": "no"}
    bare = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    tokenizer = make_tokenizer(template=bare + "{% if add_generation_prompt %}[assistant]{% endif %}")
    assert one(tmp_path, row, tokenizer=tokenizer).chosen.token_ids == ids("yes")
    assert one(tmp_path, row, tokenizer=tokenizer, append_eos=True).chosen.token_ids == (*ids("yes"), EOS)


class Merging:
    """`ab` is one token, so that a boundary between the two lies inside it."""

    bos_token = eos_token = chat_template = None
    bos_token_id, eos_token_id = None, EOS

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [ord(letter) for letter in text.replace("ab", "@")]}


def test_a_prompt_s_ids_do_not_depend_on_its_answer(tmp_path: Path) -> None:
    """Would catch a training on a prompt that no policy is ever asked with; the split is counted."""
    rows = [{"prompt": "xa", "chosen": "b", "rejected": "ab"}]
    draw = load(write_rows(tmp_path / "x.jsonl", rows), tokenizer=Merging()).head(1)
    [pair] = draw.items
    assert tokens(pair) == (tuple(map(ord, "xa")), (ord("b"),), (ord("@"),))
    assert draw.counts["num_split_boundaries"] == 1


IMPLICIT = [
    # chosen, rejected -> prompt, answers; or why there are none
    ("Q: hi A: yes it is", "Q: hi A: no", ("Q: hi A:", " yes it is", " no")),
    ("Q: hi A: yes", "Q: hi A: yes sir", ("Q: hi A:", " yes", " yes sir")),
    ("Q: hi A: year", "Q: hi A: yesterday", ("Q: hi A:", " year", " yesterday")),
    ("Q:  A:  yes", "Q:  A:  no", ("Q:  A:", "  yes", "  no")),
    ("yes", "no", "no_common_prompt"),
    (" yes", " no", "no_common_prompt"),
    ("Q: hi A: yes", "Q: hi A: yes", "equal"),
    ("Q: hi A:", "Q: hi A: yes", ("Q: hi", " A:", " A: yes")),
    ([USER, said("assistant", "a")], [USER, said("assistant", "b")], ([USER], "a", "b")),
    ([USER, said("assistant", "a")], [USER, said("assistant", "a")], "equal"),
    ([USER, said("assistant", "a")], [USER], "no_common_prompt"),
    ([said("assistant", "a")], [said("assistant", "b")], "no_common_prompt"),
    ([USER, said("assistant", "a"), USER, said("assistant", "c")], [USER, said("assistant", "b")], "no_common_prompt"),
    ([USER, said("user", "a")], [USER, said("user", "b")], "no_common_prompt"),
    ([USER, said("assistant", " ")], [USER, said("assistant", "b")], "empty"),
]


@pytest.mark.parametrize(("chosen", "rejected", "expected"), IMPLICIT)
def test_where_a_prompt_ends_that_has_no_column(chosen: Any, rejected: Any, expected: Any, tmp_path: Path) -> None:
    rows = [{"chosen": chosen, "rejected": rejected}]
    source = load(write_rows(tmp_path / "x.jsonl", rows), prompt=None)
    if isinstance(expected, str):
        with pytest.raises(DataError, match=rf"has 0 usable of 1 rows \(dropped: {expected} 1;"):
            source.head(1)
        return
    [pair] = source.head(1).items
    prompt, *answers = expected
    assert pair.prompt.content == prompt
    assert [pair.chosen.text, pair.rejected.text] == answers
    if isinstance(chosen, str):
        assert (*pair.prompt.token_ids, *pair.chosen.token_ids) == (BOS, *ids(chosen))


@pytest.mark.parametrize("label", [True, 1, "True", "1"])
def test_labelled_answers(label: Any, tmp_path: Path) -> None:
    rows = [
        {"prompt": "p", "completion": " good", "label": label},
        {"prompt": "p", "completion": " bad", "label": not label if isinstance(label, bool) else type(label)(0)},
    ]
    path = write_rows(tmp_path / "x.jsonl", rows)
    good, bad = load(path, format="labelled").head(2).items
    assert isinstance(good, Labelled) and (good.desirable, bad.desirable) == (True, False)
    assert good.completion.token_ids == ids(" good") and not good.completion.is_sampled
    chat = write_rows(tmp_path / "y.jsonl", [{"completion": [USER, said("assistant", "a")], "label": True}])
    [item] = load(chat, format="labelled", prompt=None).head(1).items
    assert item.prompt.content == [USER] and item.completion.token_ids == (*ids("a"), EOS)


ROWS = [
    {"prompt": "p", "chosen": " y", "rejected": " n"},
    {"prompt": "p", "chosen": " y", "rejected": " y"},
    {"prompt": "p", "chosen": " ", "rejected": " n"},
    {"prompt": " ", "chosen": " y", "rejected": " n"},
    {"prompt": "p" * 8, "chosen": " y", "rejected": " n"},
    {"prompt": "p" * 7, "chosen": " 234</s>", "rejected": " n"},
    {"prompt": "p", "chosen": " 2345", "rejected": " 2346"},
]
REASONS = {"equal": 1, "empty": 2, "prompt_too_long": 1, "equal_when_truncated": 1}


@pytest.mark.parametrize("append_eos", [False, True])
def test_long_rows_lose_answer_ends_and_never_prompts(append_eos: bool, tmp_path: Path) -> None:
    """Would catch a cut prompt, an end token that is invented or outlives the cut, a pair of equal answers, a text that
    tells more than its tokens, and a row that nobody counts."""
    path = write_rows(tmp_path / "x.jsonl", ROWS)
    limits = {"max_prompt_tokens": 8, "max_completion_tokens": 4, "append_eos": append_eos}
    source = load(path, **limits)
    draw, end = source.head(None), (EOS,) if append_eos else ()
    assert [tokens(item) for item in draw.items] == [
        ((BOS, *ids("p")), (*ids(" y"), *end), (*ids(" n"), *end)),
        ((BOS, *ids("p" * 7)), ids(" 234"), (*ids(" n"), *end)),
    ]
    assert "".join(draw.items[1].chosen.text.split()) == "234"
    assert +Counter(draw.outcomes) == {"kept": 2, **REASONS} and Counter(draw.outcomes).total() == len(ROWS)
    assert draw.counts["num_truncated_answers"] == 1
    drawn = source.draw(Cursor(), None, asked_by="pairs.per_round is 11")
    assert (drawn.outcomes, drawn.counts) == (draw.outcomes, draw.counts)
    strict = load(path, **limits, truncated="drop").head(None)
    assert len(strict.items) == 1 and strict.counts["num_truncated_answers"] == 0
    assert +Counter(strict.outcomes) == {"kept": 1, "equal": 1, "empty": 2, "prompt_too_long": 1, "truncated": 2}


# ---- a round's rows


def test_every_epoch_has_each_pair_once_and_goes_on_from_the_cursor(tmp_path: Path) -> None:
    """Would catch a row that is drawn twice or never, an order without the seed, and one that restarts on resume."""
    rows = [{"id": f"r{i}", "prompt": f"p{i}", "chosen": " y", "rejected": " n"} for i in range(10)]
    path = write_rows(tmp_path / "x.jsonl", [*rows, ROWS[1]])
    cursor, drawn = Cursor(), []
    for _ in range(5):  # 5 draws of 4 are 2 epochs
        draw = load(path).draw(Cursor.from_dict(cursor.to_dict()), 4, asked_by="pairs.per_round is 11")
        cursor, drawn = draw.cursor, [*drawn, *(item.prompt.prompt_id for item in draw.items)]
        assert len({item.prompt.prompt_id for item in draw.items}) == 4
    assert Counter(drawn) == dict.fromkeys((f"pairs/{row:06d}" for row in range(10)), 2)
    assert drawn[:10] != drawn[10:] and sorted(drawn[:10]) != drawn[:10]
    whole = load(path).draw(Cursor(epoch=1), None, asked_by="pairs.per_round is 11")
    assert sorted(item.prompt.prompt_id for item in whole.items) == sorted(set(drawn))
    assert whole.cursor == Cursor(epoch=2) and whole.outcomes["equal"] == 1
    with pytest.raises(
        DataError, match=r"^pairs.per_round is 11, which takes 11 rows, but .* 10 usable of 11 .*equal 1;.*; lower"
    ):
        load(path).draw(Cursor(), 11, asked_by="pairs.per_round is 11")
    with pytest.raises(DataError, match="already reached row 12 of it; put the source back"):
        load(path).draw(Cursor(0, 12), 1, asked_by="pairs.per_round is 11")


# ---- what is no preference

PLAIN = {"prompt": "p", "chosen": " y", "rejected": " n"}


@pytest.mark.parametrize(
    ("spec", "row", "message"),
    [
        (
            {},
            {"prompt": "p", "chosen": "y"},
            "line 2 has no column rejected, it has prompt, chosen: set pairs.rejected",
        ),
        ({}, {"chosen": "y", "rejected": "n"}, "set pairs.prompt to the column that holds the prompt, or to null"),
        ({"prompt": "question"}, {"question": 3}, "line 2 has no column chosen"),
        ({}, {**PLAIN, "prompt": None}, "prompt of line 2 is null, .* set pairs.prompt to another column"),
        ({}, {**PLAIN, "rejected": None}, "rejected of line 2 is null, but an answer is text"),
        ({}, {**PLAIN, "chosen": [USER]}, "chosen of line 2 is a list of chat messages and its prompt is text"),
        ({}, {"prompt": [USER], "chosen": [USER], "rejected": "n"}, "chosen of line 2 is a message of the user"),
        ({}, {"prompt": [USER], "chosen": "y", "rejected": [USER, said("assistant", "n")]}, "set pairs.prompt to null"),
        ({}, {"prompt": [USER], "chosen": "y", "rejected": "n"}, "line 2 is a chat and line 1 is plain text"),
        ({"prompt": None}, {**PLAIN, "chosen": [USER]}, "is text and the other a list"),
        ({"prompt": None}, {"chosen": [{"role": "user"}], "rejected": []}, "a message has a role and a content"),
        ({"format": "labelled"}, {"prompt": "p", "completion": "y", "label": 2}, "label of line 2 is int 2, but"),
        ({"format": "labelled"}, {"prompt": "p", "completion": "y", "label": "good"}, "label of line 2 is text, but"),
        ({"format": "labelled", "prompt": None}, {"completion": "y", "label": True}, "nothing says where the prompt"),
    ],
)
def test_what_is_no_preference_is_named_with_its_line(
    spec: dict[str, Any], row: dict[str, Any], message: str, tmp_path: Path
) -> None:
    first = {**PLAIN, "completion": " y", "label": True, "question": "q"}
    if spec.get("format") == "labelled" and spec.get("prompt", "prompt") is None:
        first["completion"] = [USER, said("assistant", "y")]
    path = write_rows(tmp_path / "x.jsonl", [first, row])
    with pytest.raises(DataError, match=rf"^pairs\.source is .*; .*{message}"):
        load(path, **spec)


def test_a_template_that_rewrites_the_prompt_is_refused(tmp_path: Path) -> None:
    """The answer could not be told from the prompt; would catch a training on the wrong tokens."""
    template = "{% if not add_generation_prompt %}over {% endif %}" + CHATML
    with pytest.raises(DataError, match=r"refuses line 1 .*does not begin a conversation with an answer as"):
        one(tmp_path, {"prompt": [USER], "chosen": "y", "rejected": "n"}, tokenizer=make_tokenizer(template=template))
    with pytest.raises(DataError, match=r"the tokenizer has no chat template; .*chat_template_kwargs"):
        one(tmp_path, {"prompt": [USER], "chosen": "y", "rejected": "n"}, tokenizer=make_tokenizer(template=None))
