"""Training prompts that an evaluation has as well, against a slow and obvious reference."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import pytest
from config_kit import BASE
from hypothesis import given, settings
from hypothesis import strategies as st
from prompt_kit import make_tokenizer, write_rows

from online_dpo.config.loading import load_config
from online_dpo.data.decontamination import HeldOut, decontaminate, same_words, words_of
from online_dpo.data.drawing import Cursor
from online_dpo.data.mixtures import load_evaluation_sets, load_prompts
from online_dpo.data.preferences import PairDraw
from online_dpo.errors import DataError
from online_dpo.types import Completion, Labelled, Message, Prompt

COMMON: dict[str, Any] = {"tokenizer": make_tokenizer(), "max_tokens": 500, "chat_template_kwargs": {}, "seed": 0}
NUMBERS = [
    "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen",
    "fourteen",
]  # fmt: skip


def held_out(*texts: str) -> HeldOut:
    prompts = [Prompt(prompt_id=f"h{i}", token_ids=(1,), text=text) for i, text in enumerate(texts)]
    return HeldOut({"evaluation.sets.heldout": prompts})


def kinds(training: list[Any], *held: str) -> dict[int, str]:
    return {row: match.kind for row, match in held_out(*held).find(training).items()}


def slowly(training: list[str], held: list[str]) -> dict[int, str]:
    """ASCII text, by the definition alone."""
    signs = str.maketrans(dict.fromkeys(string.punctuation, " "))
    lessened = str.maketrans(dict.fromkeys(".,;:?\"'`", " "))

    def exact(text: str) -> str:
        return " ".join(text.lower().translate(lessened).split())

    def runs(text: str) -> set[str]:
        words = text.lower().translate(signs).split()
        return {" ".join(words[i : i + 13]) for i in range(len(words) - 12)}

    different = {exact(text): text for text in reversed(held)}.values()
    often = [run for text in different for run in runs(text)]
    evidence = {run for run in often if often.count(run) <= 10}
    found = {}
    for row, text in enumerate(training):
        if exact(text) and exact(text) in map(exact, held):
            found[row] = "exact"
        elif runs(text) & evidence:
            found[row] = "words"
    return found


WORDS = st.lists(st.sampled_from(["a", "b", "A,", "b.", "(a", "c-d", "+", "!"]), max_size=22)


@settings(max_examples=300, deadline=None)
@given(st.lists(WORDS, max_size=14), st.lists(st.tuples(WORDS, st.integers(0, 13), WORDS), max_size=12))
def test_it_finds_what_the_definition_says(held: list[list[str]], made: list[tuple[list[str], int, list[str]]]) -> None:
    held_texts = [" ".join(words) for words in held]
    training = [
        " ".join([*before, *(held[which] if which < len(held) else []), *after]) for before, which, after in made
    ]
    assert kinds(training, *held_texts) == slowly(training, held_texts)


def test_common_phrases_are_no_evidence() -> None:
    """An instruction that all prompts begin with would otherwise make every one of them contaminated."""
    intro = " ".join(NUMBERS)
    eleven = [f"{intro} apple {i}" for i in range(11)]
    assert kinds([f"{intro} pear"], *eleven) == {}
    assert kinds([f"{intro} pear"], *eleven[:10]) == {0: "words"}
    assert kinds([f"{intro} pear"], *([eleven[0]] * 12)) == {0: "words"}, "the same prompt again is one prompt"
    assert kinds([eleven[3].upper()], *eleven) == {0: "exact"}


@pytest.mark.parametrize(
    ("training", "held", "kind"),
    [
        ("What  is\nthe sea?", "what is the Sea", "exact"),
        ("“Don’t,” she said", '"don\'t" she said', "exact"),  # noqa: RUF001
        ("Straße", "STRASSE", "exact"),
        ("re\u0301sume\u0301", "RÉSUMÉ", "exact"),
        ("海 是什么？", "海 是什么", "exact"),  # noqa: RUF001
        ("What is 3 + 4?", "What is 3 - 4?", None),
        ("2*(3+4)", "(2*3)+4", None),
        ("Is 1.5 even?", "Is 15 even?", None),
        ("x² + 1", "x2 + 1", None),
        ("What is 5!", "What is 5?", None),
        ("नमस्ते दुनिया", "नमसता दनय", None),
        ("?!", "...", None),
        ("", "", None),
        (" ".join(NUMBERS[:12]), " ".join(NUMBERS), None),
        (" ".join(NUMBERS[1:]) + " more", " ".join(NUMBERS), "words"),
        (" ".join([*NUMBERS[:7], "then", *NUMBERS[7:]]), " ".join(NUMBERS), None),
    ],
)
def test_what_is_the_same_prompt(training: str, held: str, kind: str | None) -> None:
    assert kinds([training], held) == ({} if kind is None else {0: kind})


def test_of_a_chat_the_users_turns_are_compared() -> None:
    system: Message = {"role": "system", "content": " ".join(NUMBERS)}
    asked: Message = {"role": "user", "content": "Who?"}
    told: Message = {"role": "assistant", "content": " ".join(NUMBERS)}
    more: Message = {"role": "user", "content": "And then?"}
    chats = [(system, asked), (asked, told, more), (system,), (more,)]
    assert kinds(chats, "who") == {0: "exact"}
    assert kinds(chats, "who and then") == {1: "exact"}
    assert kinds(chats, " ".join(NUMBERS)) == {}
    assert words_of("Who? And_then: 3½") == ["who", "and", "then", "3½"] and same_words(" A.\n b ") == "a b"


# ---- a run


def loaded(tmp_path: Path, what: str, training: list[str], held: list[str], per_round: int = 1) -> Any:
    config = load_config({
        **BASE,
        "prompts": {
            "source": str(write_rows(tmp_path / "train.jsonl", [{"prompt": text} for text in training])),
            "contaminated": what,
            "per_round": per_round,
        },
        "evaluation": {
            "sets": {"h": {"source": str(write_rows(tmp_path / "h.jsonl", [{"prompt": t} for t in held])), "count": 2}}
        },
    })  # fmt: skip
    prompts, sets = load_prompts(config, **COMMON), load_evaluation_sets(config, **COMMON)
    assert prompts is not None
    return prompts, decontaminate(config, prompts, sets, {})


def test_what_becomes_of_them(tmp_path: Path) -> None:
    training, held = ["a", "b", "B!", "c", "B?"], ["b", "d", "a"]  # the third one is beyond the set's count
    prompts, [overlap] = loaded(tmp_path, "drop", training, held)
    usable = prompts.count()
    assert [p.text for p in usable.prompts] == ["a", "B!", "c"]
    assert usable.passed_over == {"too_long": 0, "empty": 0, "contaminated": 2}
    assert str(overlap) == (
        "prompts: 2 of 5 prompts are in an evaluation as well (2 in the same words, 0 with 13 words in a row), such "
        "as prompt 000001, which is prompt 000000 of evaluation.sets.h; they are left out"
    )
    prompts, [overlap] = loaded(tmp_path, "warn", training, held)
    assert len(prompts.count().prompts) == 5 and "contaminated" not in prompts.count().passed_over
    assert str(overlap).endswith("they are trained on all the same; prompts.contaminated: drop leaves them out")
    prompts, overlaps = loaded(tmp_path, "keep", training, held)
    assert len(prompts.count().prompts) == 5 and overlaps == ()
    prompts, overlaps = loaded(tmp_path, "drop", ["x"], held)
    assert overlaps == () and prompts.draw(Cursor(), 1).passed_over["contaminated"] == 0
    with pytest.raises(DataError) as caught:
        loaded(tmp_path, "drop", ["a", "b"], ["A", "B"])[0].draw(Cursor(), 1)
    assert str(caught.value) == (
        f"prompts.per_round is 1, but prompts.source is {tmp_path / 'train.jsonl'}, which has 0 usable prompts (0 are "
        f"longer than prompts.max_tokens, which is 500, and 0 are empty, 2 are in an evaluation set as well "
        f"(prompts.contaminated is drop)); lower prompts.per_round to 0 or add prompts"
    )


def test_the_prompts_of_held_out_pairs_count_as_those_of_sets(tmp_path: Path) -> None:
    config = load_config({
        **BASE,
        "prompts": {
            "source": str(write_rows(tmp_path / "train.jsonl", [{"prompt": text} for text in ("a", "b", "c")])),
            "contaminated": "drop",
            "per_round": 1,
        },
    })  # fmt: skip
    prompts = load_prompts(config, **COMMON)
    assert prompts is not None
    answer = Completion(
        prompt_id="p", sample_index=0, token_ids=(1,), text="x",
        finish_reason=None, sampler_logps=None, policy_version=None, seed=None,
    )  # fmt: skip
    item = Labelled(prompt=Prompt(prompt_id="p", token_ids=(1,), text="B."), completion=answer, desirable=True)
    draw = PairDraw(items=(item,), cursor=Cursor(), outcomes={}, counts={})
    [overlap] = decontaminate(config, prompts, {}, {"people": draw})
    assert overlap.example == "prompt 000001, which is prompt p of evaluation.pairs.people"
    assert [prompt.text for prompt in prompts.count().prompts] == ["a", "c"]
