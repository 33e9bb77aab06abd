"""Final answers as models write them, right and wrong; the parser of expressions against Python's own arithmetic."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from judge_kit import ask, brief, caller_of, question

from judges.trial import try_judges
from judges.verifier.expressions import POINTS, read_answer, same_answer
from online_dpo.errors import JudgeError


def verify(tmp_path: Path, method: str, answer: Any, *texts: str, **more: Any) -> list[Any]:
    judge = {"type": "verifier", "method": method, "answer": "solution", **more}
    (said,), _ = ask(caller_of(tmp_path, judge), question(*texts, solution=answer))
    return brief(said)


RIGHT = [
    "#### 72",
    "The answer is 72.",
    "Answer: 72",
    "**Answer:** $72.00",
    "The final answer is: **72**",
    r"so \boxed{72}",
    r"Hence $\boxed{\text{72}}$",
    r"The answer is \$72.",
    "The answer is $72$. I hope it is correct.",
    r"Answer: \( 72 \)",
    "$72",
    "72.00",
    "72 eggs",
    "She sells **72** of them.",
    "At 3 a day for 24 days, the answer is 3 * 24 = 72",
    r"\frac{144}{2}",
    "The answer is 5. No: wait, the answer is 72.",
    "- 72 apples",
    "7.2e1",
]
WRONG = [
    "#### 7.2",
    "The answer is -72",
    "The answer is \N{MINUS SIGN}72",
    r"\boxed{-72}",
    "-$72",
    "720",
    "the answer is 72,000",
    "72 were sold, so 28 are left",
    "72 in all, but the answer is 71",
    "#### 72\nThe answer is 73.",
    "I do not know.",
    "",
]


@pytest.mark.parametrize("reference", [72, "72", "16 * 4.5 = <<16*4.5=72>>72 a day.\n#### 72"])
def test_numbers_in_every_style(reference: Any, tmp_path: Path) -> None:
    found = verify(tmp_path, "numeric", reference, *RIGHT, *WRONG)
    assert dict(zip([*RIGHT, *WRONG], found, strict=True)) == {**dict.fromkeys(RIGHT, 1.0), **dict.fromkeys(WRONG, 0.0)}


def test_large_numbers_and_their_separators(tmp_path: Path) -> None:
    right = ("1,234,567", "1234567", r"1{,}234{,}567", "$1,234,567.00", "The answer is 1,234,567 dollars per 5 days")
    assert verify(tmp_path, "numeric", "#### 1,234,567", *right) == [1.0] * 5
    assert verify(tmp_path, "numeric", "1,234,567", "1,234,568", "1,234.567", "12,34,567", "1") == [0.0] * 4
    assert verify(tmp_path, "numeric", "2.5", "2 1/2", r"2\frac{1}{2}", "5/2", "2") == [1.0, 1.0, 1.0, 0.0]
    assert verify(tmp_path, "numeric", "3.14159", "3.14", tolerance=0.01) == [1.0]


SAME = [
    (r"\frac{1}{2}", "0.5"),
    (r"\frac12", "1/2"),
    ("x^2 - 1", "(x-1)(x+1)"),
    (r"2\sqrt{2}", r"\sqrt{8}"),
    ("(1,2)", "(1, 2)"),
    (r"\{2, 1\}", "1, 2"),
    ("x = 5", "5"),
    ("f(x) = 2x", "x + x"),
    (r"2\pi", "2pi"),
    (r"\sin(t)^2 + \cos(t)^2", "1"),
    (r"50\%", "50"),
    (r"90^\circ", "90"),
    (r"\text{Monday}", "monday"),
    (r"3 \text{ cm}", "3"),
    ("5!", "120"),
    ("|-3|", "3"),
    (r"\sqrt[3]{8}", "2"),
    (r"\frac{a}{b+c}", "a/(b+c)"),
    (r"\left( 3, \frac{\pi}{2} \right)", r"(3, \pi/2)"),
]
OTHER = [
    (r"\frac{1}{2}", "0.51"),
    ("x^2", "x"),
    ("x", "y"),
    ("x", "X"),
    (r"\sqrt{x^2}", "x"),
    ("(1,2)", "(2,1)"),
    ("[0,1)", "(0,1)"),
    ("(0,1)", r"\{0,1\}"),
    ("1,2", "1,2,2"),
    ("5", "-5"),
    ("monday", "dynamo"),
    ("12", "1 2"),
]


@pytest.mark.parametrize("wrap", ["{}", "Then the answer is ${}$. I hope so.", r"\boxed{{{}}}"])
def test_expressions_are_compared_by_value(wrap: str, tmp_path: Path) -> None:
    for a, b in SAME:
        assert verify(tmp_path, "symbolic", a, wrap.format(b)) == [1.0], (a, b)
        assert verify(tmp_path, "symbolic", b, wrap.format(a)) == [1.0], (b, a)
    for a, b in OTHER:
        assert verify(tmp_path, "symbolic", a, wrap.format(b)) == [0.0], (a, b)


EXPRESSIONS = st.recursive(
    st.integers(0, 30).map(str) | st.sampled_from(["x", "2.5"]),
    lambda inner: (
        st.tuples(inner, st.sampled_from(["+", "-", "*", "/"]), inner).map(lambda t: f"({t[0]} {t[1]} {t[2]})")
        | st.tuples(inner, st.integers(0, 3)).map(lambda t: f"({t[0]}**{t[1]})")
        | inner.map(lambda t: f"(-{t})")
    ),
    max_leaves=8,
)


@given(EXPRESSIONS)
@settings(max_examples=300, deadline=None)
def test_the_parser_computes_what_python_computes(text: str) -> None:
    found = read_answer(text)
    factor = 1.0 + 0.0512345 * (ord("x") - ord("a"))
    try:
        wanted = [eval(text, {"x": complex(point * factor)}) for point in POINTS]
    except ZeroDivisionError:
        assert found is None
        return
    assert found is not None and found[0] == "value"
    assert list(found[1][0]) == pytest.approx(wanted, rel=1e-9, abs=1e-9)
    assert same_answer(found, read_answer(f"  {text} . ") or found, tolerance=0.0)


HOSTILE = [
    "9^9^9^9^9",
    "(" * 380 + "1",
    "1/0",
    "10!!!!!!",
    "999!",
    "1e999",
    r"\sqrt" * 70,
    "2^" * 150 + "2",
    "x" * 400,
    "__import__('os').system('true')",
    r"\frac{",
    r"\boxed{" * 50,
    "answer is " * 40,
    "#### ",
    "1" * 100_000,
    "the answer is" + " " * 50_000,
    "{" * 5000,
    r"\boxed{" * 5000,
    "answer is " * 5000,
]


@pytest.mark.parametrize("method", ["exact", "numeric", "symbolic"])
def test_hostile_texts_are_wrong_and_harmless(method: str, tmp_path: Path) -> None:
    """Bounded by construction: the parser runs nothing and looks at 400 characters."""
    found = verify(tmp_path, method, "7", *HOSTILE)
    assert found == [0.0] * len(HOSTILE)
    assert verify(tmp_path, method, "7", *HOSTILE, "The answer is 7.")[-1] == 1.0


def test_exact_answers_patterns_and_regular_expressions(tmp_path: Path) -> None:
    assert verify(tmp_path, "exact", "B", "B", " B. ", "The answer is B.", r"\boxed{B}", "b", "BB", "A, not B") == [
        *([1.0] * 4),
        *([0.0] * 3),
    ]
    found = verify(tmp_path, "exact", "label: yes", "<a>no</a><a>yes</a>", "yes", pattern="<a>(.*?)</a>",
                   reference_pattern="label: (.*)")  # fmt: skip
    assert found == [1.0, 0.0], "the last match counts; without one there is no answer"
    assert verify(tmp_path, "regex", r"(?i)\bparis\b", "In Paris.", "comparison", "Lyon") == [1.0, 0.0, 0.0]


def test_no_answer_in_the_completion_or_in_the_column(tmp_path: Path) -> None:
    judge = {"type": "verifier", "method": "numeric", "answer": "solution"}
    (said,), counts = ask(caller_of(tmp_path, judge), question("none", "7", solution="7"))
    assert (brief(said), counts["num_unreadable_answers"]) == ([0.0, 1.0], 1)
    found = verify(tmp_path, "numeric", "7", "none", "7", unreadable="abstain")
    assert found == ["no answer found in the completion", 1.0]
    assert verify(tmp_path, "numeric", None, "7") == ["no numeric answer in solution ('')"]
    caller = caller_of(tmp_path, judge)
    (said,), _ = ask(caller, question("7", other="7"))
    assert said[0].failed
    with pytest.raises(JudgeError, match=r"judge\.answer is solution, .* has no such column \(it has: a\)"):
        asyncio.run(try_judges(caller, chat=True, metadata={"a": 1}))
    bad = caller_of(tmp_path, {**judge, "method": "regex"})
    assert "holds '(', no regular expression" in brief(ask(bad, question("7", solution="("))[0][0])[0]
