"""Tokens of an answer, counted from the ids alone, against the offsets that the tokenizer gives to a text."""

from __future__ import annotations

import random
from typing import Any

import pytest
from pairing_kit import completion
from transformers import AutoTokenizer

from online_dpo.config.judges.view import ViewSection
from online_dpo.data.answer_lengths import AnswerLengths, check_prefilled, has_special_tags
from online_dpo.errors import ConfigError
from online_dpo.models.locating import locate
from online_dpo.pairing.answers import num_answer_tokens, read_answer
from online_dpo.types import Prompt

VIEW = ViewSection(strip=["think"], tags=[{"open": "◁T▷", "close": "◁/T▷"}])
PIECES = ["<think>", "</think>", "◁T▷", "◁/T▷", " a film", "\n\n", " good", "é", "🎬", " 電影", "</", "think", ">", " "]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(locate("embedded:policy", field="model.path"))


def measured(tokenizer: Any, text: str, ids: list[int], view: ViewSection = VIEW) -> int:
    found = AnswerLengths(view, tokenizer)(completion(0, text=text, tokens=tuple(ids)))
    assert found.token_ids == tuple(ids) and found.text == text
    return num_answer_tokens(found)


def test_as_the_offsets_of_the_tokenizer_say(tokenizer: Any) -> None:
    draw = random.Random(0)
    num_kinds = set()
    for _ in range(300):
        text = "".join(draw.choices(PIECES, k=draw.randrange(40)))
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        if tokenizer.decode(encoded.input_ids) != text:
            continue
        answer = read_answer(text, VIEW)
        inside = [any(a <= start and end <= b for a, b in answer.kept) for start, end in encoded.offset_mapping]
        # Several tokens of one character share its offsets; they are inside together.
        assert measured(tokenizer, text, encoded.input_ids) == sum(inside), text
        num_kinds.add((answer.is_closed, min(3, len(answer.kept))))
    assert len(num_kinds) >= 6, "the texts are of too few kinds"


def test_the_end_token_belongs_to_the_answer_and_a_stop_string_too(tokenizer: Any) -> None:
    thought, answer = "<think>" + " a long thought" * 200 + "</think>", " good film"
    ids = [*tokenizer(thought, add_special_tokens=False).input_ids]
    rest = tokenizer(answer, add_special_tokens=False).input_ids
    assert measured(tokenizer, thought + answer, [*ids, *rest, tokenizer.eos_token_id]) == len(rest) + 1
    stop = tokenizer(" END", add_special_tokens=False).input_ids  # cut off the text, and trained on
    assert measured(tokenizer, thought + answer, [*ids, *rest, *stop]) == len(rest) + len(stop)
    assert measured(tokenizer, thought, ids) == 0
    assert measured(tokenizer, thought[:-3], tokenizer(thought[:-3], add_special_tokens=False).input_ids) == 0
    assert measured(tokenizer, answer, rest) == len(rest)
    plain = completion(0, text="a", tokens=(1, 2, 3))
    assert AnswerLengths(None, tokenizer)(plain) is plain and num_answer_tokens(plain) == 3


def test_tags_that_are_special_tokens_are_noticed(tokenizer: Any) -> None:
    assert not has_special_tags(VIEW, tokenizer) and not has_special_tags(None, tokenizer)
    named = ViewSection(tags=[{"open": f"{tokenizer.eos_token}analysis", "close": "final"}])
    assert has_special_tags(named, tokenizer)


def test_prompts_and_prefilled_must_agree(tokenizer: Any) -> None:
    def check(text: str, **options: Any) -> None:
        ids = tokenizer(text, add_special_tokens=False).input_ids
        view = ViewSection(strip=["think"], **options)
        check_prefilled(view, [Prompt(prompt_id="p7", token_ids=tuple(ids), text=text)], tokenizer, "judge.view")

    check("a film")
    check("what does <think> mean?")
    check("x <think>\n\n</think>\n\n")  # a template that has switched thinking off
    check("x <think>\n", prefilled=True)
    check("x <think>\nOkay,", prefilled=True)
    for text in ("x<think>", "x<think> \n"):
        with pytest.raises(ConfigError, match=r"prompt p7 ends with <think>.*set judge.view.prefilled to true"):
            check(text)
    for text in ("x", "x <think>\n\n</think>\n\n"):
        with pytest.raises(ConfigError, match="ends with no opening tag"):
            check(text, prefilled=True)
