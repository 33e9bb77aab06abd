"""What goes into a user's judge is a copy, and what comes back has an order and is a number, or it is refused."""

from __future__ import annotations

import array
import asyncio
import collections
import decimal
import fractions
import itertools
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from judges.protocol import Abstain, Question, check_verdicts
from judges.user.python_judge import adapt
from judges.values import storable
from online_dpo.errors import JudgeError
from online_dpo.types import Verdict

COMPLETIONS = ("c0", "c1", "c2")


def question(prompt_id: str = "p") -> Question:
    prompt: Any = [{"role": "user", "content": prompt_id}]
    return Question(prompt_id=prompt_id, prompt=prompt, completions=COMPLETIONS, metadata={"seen": [prompt_id]})


def ask(method: str, answer: Callable[..., Any], number: int = 1) -> list[list[Verdict]]:
    """What a class with this one method says about so many questions, as the host hears it."""
    judge = adapt(type("Mine", (), {method: staticmethod(answer)}), {}, field="judge", name="Mine")
    questions = [question(f"p{i}") for i in range(number)]
    return check_verdicts(questions, asyncio.run(judge.judge(questions)))


def scores(lists: list[list[Verdict]]) -> list[list[float | None]]:
    return [[verdict.score for verdict in verdicts] for verdicts in lists]


NUMBERS = {
    "decimal": decimal.Decimal("1.5"),
    "fraction": fractions.Fraction(3, 2),
    "longdouble": np.longdouble(1.5),
    "big-endian": np.array(1.5, dtype=">f8"),
    "bfloat16": torch.tensor(1.5, dtype=torch.bfloat16),
    "with gradient": torch.tensor(1.5, requires_grad=True),
}


@pytest.mark.parametrize("form", NUMBERS)
def test_numbers_of_every_kind_are_read(form: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch's, about a gradient
        [[first, *_]] = ask("score_batch", lambda prompts, completions: [NUMBERS[form]] * 3)
    assert first.score == 1.5 and type(first.score) is float


NO_NUMBERS = {
    "text of numpy": np.str_("7"),
    "array of text": np.array("7"),
    "text with __float__": collections.UserString("7"),
    "complex": 1 + 2j,
    "complex of numpy": np.complex128(1 + 2j),
    "complex tensor": torch.tensor(1 + 2j),
    "a time": np.datetime64("2026-01-01"),
    "a duration": np.timedelta64(3, "s"),
    "boolean tensor": torch.tensor(True),
    "no value": torch.tensor(1.0, device="meta"),
    "too large": 10**5000,
    "one row": np.ones(1),
    "nothing": np.nan,
}


@pytest.mark.parametrize("form", NO_NUMBERS)
def test_what_is_no_number_is_refused(form: str) -> None:
    with pytest.raises(JudgeError, match=r"for completion 1 of prompt p0; return a finite number"):
        ask("score_batch", lambda prompts, completions: [0.5, NO_NUMBERS[form], 0.5])
    with pytest.raises(JudgeError, match=r"for completions 0 \(a\) and 1 \(b\)"):
        ask("compare", lambda prompt, a, b: NO_NUMBERS[form])


LISTS: dict[str, Callable[[list[float]], Any]] = {
    "tuple": tuple,
    "deque": collections.deque,
    "array": np.array,
    "array of the standard library": lambda values: array.array("d", values),
    "tensor with gradient": lambda values: torch.tensor(values, requires_grad=True),
    "generator": lambda values: (value for value in values),
    "map": lambda values: map(float, values),
}


@pytest.mark.parametrize("form", LISTS)
def test_what_has_an_order_is_a_list(form: str) -> None:
    assert scores(ask("score_batch", lambda p, c: LISTS[form]([0.5, 2.0, 1.0]))) == [[0.5, 2.0, 1.0]]


NO_LISTS: dict[str, tuple[Any, str]] = {
    "set": ({0.5, 2.0, 1.0}, r"returned \{[^}]*\} for 3"),
    "frozenset": (frozenset({0.5, 2.0, 1.0}), "returned frozenset"),
    "mapping": ({"c0": 0.5, "c1": 2.0, "c2": 1.0}, "returned {'c0'"),
    "values of a mapping": ({"c0": 0.5, "c1": 2.0, "c2": 1.0}.values(), "returned dict_values"),
    "bytes": (bytearray(b"abc"), "returned bytearray"),
    "text": ("123", "returned '123'"),
    "column": (np.ones((3, 1)), "returned array"),
    "matrix": (torch.ones(1, 3), "returned tensor"),
    "too short": ((i for i in (1.0, 2.0)), "returned 2 scores for 3"),
    "endless": (itertools.repeat(1.0), "returned more than 3 scores for 3"),
    "repr raises": (type("Odd", (), {"__repr__": lambda self: 1 / 0})(), "returned a Odd that cannot be shown"),
}


@pytest.mark.parametrize("form", NO_LISTS)
def test_what_has_no_order_is_refused(form: str) -> None:
    """A set comes in the order of hashes: half of its labels were wrong."""
    value, message = NO_LISTS[form]
    with pytest.raises(JudgeError, match=f"{message}.*"):
        ask("score_batch", lambda prompts, completions: value)


@pytest.mark.parametrize(
    "order",
    [{2, 0, 1}, [2.0, 0.0, 1.0], ["c2", "c0", "c1"], [1, 2, 3], [True, False, 2], [0, 1], "201", itertools.count(), {}],
    ids=str,
)
def test_a_ranking_is_a_list_of_positions(order: Any) -> None:
    """Also no list of scores, which [2.0, 0.0, 1.0] may be as well: it would be read upside down."""
    with pytest.raises(JudgeError, match="return a list of every position from 0 to 2 once, the best first"):
        ask("rank", lambda prompt, completions: order)


def test_rankings_of_numpy_and_torch_are_read() -> None:
    for order in (np.argsort([0.5, 2.0, 1.0])[::-1], torch.tensor([1, 2, 0]), iter([1, 2, 0])):
        assert scores(ask("rank", lambda prompt, completions, order=order: order)) == [[0.0, 2.0, 1.0]]


def test_a_judge_may_change_what_it_got() -> None:
    """Would catch a prompt that grows from completion to completion, and metadata that others see changed."""
    seen: list[tuple[int, list[str]]] = []

    def look(prompt: list[Any], completion: str, metadata: dict[str, Any]) -> float:
        seen.append((len(prompt), metadata["seen"]))
        prompt.append({"role": "assistant", "content": completion})
        prompt[0]["content"] = "changed"
        metadata["seen"].append("changed")
        return float(completion[1])

    def batch(prompts: list[Any], completions: list[str], metadata: list[dict[str, Any]]) -> list[float]:
        found = [look(*row) for row in zip(prompts, completions, metadata, strict=True)]
        completions.reverse()
        return found

    def rank(prompt: list[Any], completions: list[str], metadata: dict[str, Any]) -> list[int]:
        look(prompt, completions[0], metadata)
        completions.sort(reverse=True)
        return [2, 1, 0]

    for method, answer, calls in (("score", look, 3), ("score_batch", batch, 3), ("rank", rank, 1)):
        seen.clear()
        assert scores(ask(method, answer, number=2)) == [[0.0, 1.0, 2.0]] * 2
        assert [length for length, _ in seen] == [1] * (2 * calls)
        assert [names[0] for _, names in seen] == ["p0"] * calls + ["p1"] * calls
        assert all(names[1:] == ["changed"] for _, names in seen)  # its own copy is its own

    class Whole:
        async def judge(self, questions: list[Question]) -> list[list[Verdict]]:
            questions.reverse()
            for q in questions:
                q.metadata["seen"].append("changed")  # type: ignore[index]
            return [[q.score(i, 1.0) for i in range(3)] for q in questions]

    questions = [question("p0"), question("p1")]
    judge = adapt(Whole, {}, field="judge", name="Whole")
    with pytest.raises(JudgeError, match="returned a verdict on prompt p1 for prompt p0; keep the order"):
        check_verdicts(questions, asyncio.run(judge.judge(questions)))
    assert [q.prompt_id for q in questions] == ["p0", "p1"] and questions[0].metadata == {"seen": ["p0"]}


def test_verdicts_of_the_judge_s_own_making_hold_plain_values() -> None:
    def verdict(first: Any = 0, **values: Any) -> list[list[Verdict]]:
        mine = [Verdict(prompt_id="p", first=i, score=0.0) for i in (1, 2)]
        return check_verdicts([question()], [[Verdict(prompt_id="p", first=first, **values), *mine]])

    given = {"uncertainty": torch.tensor(0.25), "rationale": "warm\ud800"}
    [[read, *_]] = verdict(np.int64(0), score=np.float32(0.5), **given)
    assert (read.first, read.score, read.uncertainty, read.rationale) == (0, 0.5, 0.25, storable("warm\ud800"))
    assert read.rationale is not None and read.rationale.encode(), "parquet takes no lone surrogate"
    assert [type(value) for value in (read.first, read.score, read.uncertainty)] == [int, float, float]
    for wrong in (
        {"first": False, "score": 1.0},
        {"score": True},
        {"score": 1.0, "rationale": 5},
        {"first": 0.0, "score": 1.0},
        {"reason": 5},
    ):
        with pytest.raises(JudgeError, match=r"returned a verdict for prompt p whose \w+ is .*, which is no"):
            verdict(**wrong)  # type: ignore[arg-type]


def test_a_reason_can_be_stored() -> None:
    """Half a surrogate pair is in the text of many an error about a file name; it ended the run in a traceback."""
    [[verdict, *_]] = ask("score", lambda prompt, completion: Abstain("\udce9" + "x" * 10_000))
    assert verdict.reason is not None and verdict.reason.startswith("?x") and len(verdict.reason) == 2000
    assert pa.array([verdict.reason]).type == pa.string()
    with pytest.raises(JudgeError, match="gave 5 as the reason of an Abstain"):
        ask("score", lambda prompt, completion: Abstain(5))  # type: ignore[arg-type]
