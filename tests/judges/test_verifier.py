"""Final answers as models write them, right and wrong: by hand, against math-verify alone, and on real references."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from judge_kit import ask, brief, caller_of, question
from verifier_cases import BOMBS, NUMERIC_RIGHT, NUMERIC_WRONG, SYMBOLIC_RIGHT, SYMBOLIC_WRONG

from judges.calling import Caller
from judges.isolation import process
from judges.trial import try_judges
from judges.verifier import verifier
from judges.verifier.numbers import read_number
from online_dpo.errors import JudgeError

MATH = Path(__file__).parents[2].parent / "shared" / "data" / "math500.jsonl"
Verify = Callable[..., list[Any]]


@pytest.fixture(scope="module")
def verify(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Verify]:
    """What is said of texts beside a reference; a process for each set of rules serves the whole module."""
    folder = tmp_path_factory.mktemp("verifier")
    callers: dict[str, Caller] = {}

    def said(method: str, answer: Any, *texts: str, **more: Any) -> list[Any]:
        rules = {"type": "verifier", "method": method, "answer": "solution", **more}
        caller = callers.setdefault(json.dumps(rules), caller_of(folder, rules))
        return brief(ask(caller, question(*texts, solution=answer))[0][0])

    yield said
    for caller in callers.values():
        caller.judge._work.child.close()  # type: ignore[union-attr]


def misjudged(
    verify: Verify, method: str, cases: Sequence[tuple[str, str]], score: float
) -> list[tuple[str, str, Any]]:
    found = ((reference, text, verify(method, reference, text)[0]) for reference, text in cases)
    return [(reference, text, said) for reference, text, said in found if said != score]


def test_every_answer_of_the_collection_is_judged_as_mathematics_has_it(verify: Verify) -> None:
    assert len(SYMBOLIC_RIGHT) + len(SYMBOLIC_WRONG) >= 120
    assert len(NUMERIC_RIGHT) + len(NUMERIC_WRONG) >= 70
    assert misjudged(verify, "symbolic", SYMBOLIC_RIGHT, 1.0) == []
    assert misjudged(verify, "symbolic", SYMBOLIC_WRONG, 0.0) == []
    assert misjudged(verify, "numeric", NUMERIC_RIGHT, 1.0) == []
    assert misjudged(verify, "numeric", NUMERIC_WRONG, 0.0) == []


@pytest.mark.exhaustive
def test_the_collection_is_hard_for_the_library_alone() -> None:
    """It would be no measure otherwise. Counted with math-verify 0.9."""
    from math_verify import parse
    from math_verify import verify as equal

    def alone(reference: str, text: str) -> bool:
        return bool(equal(parse(f"${reference}$"), parse(text)))

    false_positives = [case for case in [*SYMBOLIC_WRONG, *NUMERIC_WRONG] if alone(*case)]
    false_negatives = [case for case in [*SYMBOLIC_RIGHT, *NUMERIC_RIGHT] if not alone(*case)]
    assert len(false_positives) >= 15
    assert len(false_negatives) >= 15


@pytest.mark.skipif(not MATH.exists(), reason="the problems are not here")
def test_real_references_equal_themselves_and_their_solutions(verify: Verify) -> None:
    rows = [json.loads(line) for line in MATH.read_text(encoding="utf-8").splitlines()]
    styles = (r"So \boxed{%s}.", "The answer is $%s$.", "%s")
    wrong = []
    for row in rows:
        texts = [row["solution"], *(style % row["answer"] for style in styles)]
        said = verify("symbolic", row["answer"], *texts)
        wrong += [(row["answer"], text[-80:]) for text, score in zip(texts, said, strict=True) if score != 1.0]
    assert wrong == []


@pytest.mark.skipif(not MATH.exists(), reason="the problems are not here")
def test_a_changed_digit_or_sign_is_never_right(verify: Verify) -> None:
    rows = [json.loads(line)["answer"] for line in MATH.read_text(encoding="utf-8").splitlines()]
    accepted = []
    for answer in rows[:100]:
        place = next((i for i, c in enumerate(answer) if c.isdigit() and c != "0"), None)
        if place is None:
            continue
        digit = str((int(answer[place]) + 1) % 10)
        other = f"{answer[:place]}{digit}{answer[place + 1 :]}"
        said = verify("symbolic", answer, f"\\boxed{{{other}}}", f"The answer is $-{answer}$.")
        accepted += [(answer, other) for score in said if score != 0.0]
    assert accepted == []


@given(st.integers(-(10**30), 10**30), st.integers(0, 6), st.sampled_from(["{}", "${}", "{} eggs", "x = {}", "{}."]))
@settings(max_examples=200, deadline=None)
def test_numbers_are_read_exactly(value: int, places: int, form: str) -> None:
    number = Fraction(value, 10**places)
    digits = f"{abs(value):0{places + 1}d}"
    whole, part = (digits[:-places], digits[-places:]) if places else (digits, "")
    sign = "-" if value < 0 else ""
    for written in (whole, f"{int(whole):,}"):
        assert read_number(form.format(f"{sign}{written}{part and '.'}{part}").rstrip(".")) == number


def test_references_are_read_whole_or_not_at_all(verify: Verify) -> None:
    """An unreadable one used to shrink to its last number."""
    assert verify("numeric", r"(-\infty, 3)", "3") == [r"no numeric answer in solution ('(-\\infty, 3)')"]
    assert verify("numeric", "5 or 6", "6") == ["no numeric answer in solution ('5 or 6')"]
    assert verify("symbolic", r"\angle ABC \gtrless 3", "3", r"\boxed{\angle ABC \gtrless 3}") == [0.0, 1.0]
    assert verify("numeric", "16 * 4.5 = <<16*4.5=72>>72 a day.\n#### 72", "72", "4.5") == [1.0, 0.0]
    assert verify("numeric", 72, "72.0") == [1.0]


def test_tolerance(verify: Verify) -> None:
    assert verify("numeric", "3.14159", "3.14", tolerance=0.01) == [1.0]
    assert verify("numeric", "1000", "1001", tolerance=0.01) == [1.0]
    assert verify("numeric", "3.3333333333", "10/3", "3.3333") == [1.0, 0.0]
    assert verify("numeric", "3", "2.99999999999") == [0.0]


@pytest.mark.parametrize("method", ["exact", "numeric", "symbolic"])
def test_hostile_texts_are_wrong_and_harmless(method: str, verify: Verify) -> None:
    started = time.monotonic()
    assert verify(method, "7", *BOMBS, "The answer is 7.") == [*([0.0] * len(BOMBS)), 1.0]
    assert time.monotonic() - started < 10


def test_what_takes_too_long_is_a_failure_of_its_completion_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pattern of the user's that holds the GIL for ever; so does one in the column."""
    monkeypatch.setattr(process, "GRACE_S", 0.1)
    monkeypatch.setattr(verifier, "TIMEOUT_S", 0.3)
    judge = {"type": "verifier", "method": "numeric", "answer": "solution", "pattern": r"((?:\d+,?)+) dollars"}
    (said,), counts = ask(caller_of(tmp_path, judge), question("7 dollars", "1" * 40, "6 dollars", solution="7"))
    assert brief(said) == [1.0, "failed: TimeoutError: not done within 0.3 s", 0.0]
    assert counts["num_judge_timeouts"] == 0, "the call itself came back in time"
    judge = {"type": "verifier", "method": "regex", "answer": "solution"}
    (said,), _ = ask(caller_of(tmp_path, judge), question("a", "1" * 40, solution=r"^(?:(?:\d+,?)+ dollars|a)$"))
    assert brief(said) == [1.0, "failed: TimeoutError: not done within 0.3 s"]


def test_exact_answers_patterns_and_regular_expressions(verify: Verify) -> None:
    assert verify("exact", "B", "B", " B. ", "The answer is B.", r"\boxed{B}", "b", "BB", "A, not B") == [
        *([1.0] * 4),
        *([0.0] * 3),
    ]
    found = verify("exact", "label: yes", "<a>no</a><a>yes</a>", "yes", pattern="<a>(.*?)</a>",
                   reference_pattern="label: (.*)")  # fmt: skip
    assert found == [1.0, 0.0], "the last match counts; without one there is no answer"
    assert verify("regex", r"(?i)\bparis\b", "In Paris.", "comparison", "Lyon") == [1.0, 0.0, 0.0]


def test_no_answer_in_the_completion_or_in_the_column(verify: Verify, tmp_path: Path) -> None:
    judge = {"type": "verifier", "method": "numeric", "answer": "solution"}
    (said,), counts = ask(caller_of(tmp_path, judge), question("none", "7", solution="7"))
    assert (brief(said), counts["num_unreadable_answers"]) == ([0.0, 1.0], 1)
    found = verify("numeric", "7", "none", "7", unreadable="abstain")
    assert found == ["no answer found in the completion", 1.0]
    assert verify("numeric", None, "7") == ["no numeric answer in solution ('')"]
    caller = caller_of(tmp_path, judge)
    (said,), _ = ask(caller, question("7", other="7"))
    assert said[0].failed
    with pytest.raises(JudgeError, match=r"judge\.answer is solution, .* has no such column \(it has: a\)"):
        asyncio.run(try_judges(caller, chat=True, metadata={"a": 1}))
    bad = caller_of(tmp_path, {**judge, "method": "regex"})
    assert "holds '(', no regular expression" in brief(ask(bad, question("7", solution="("))[0][0])[0]
