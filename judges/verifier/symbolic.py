"""Mathematical answers compared by value, by math-verify (sympy), behind checks that it lacks.

Equal texts are equal answers. Numbers, words, Roman numerals and numbers in a base are decided here, exactly; what is
too large to compute is compared as text; the rest is math-verify's. It runs in a process that can be killed, since no
bound on the text bounds what sympy does with it.
"""

from __future__ import annotations

import logging
import re
from fractions import Fraction
from functools import lru_cache
from typing import Any

from judges.verifier.final_answers import formulas, without_formulas
from judges.verifier.numbers import MAX_LENGTH, equal_numbers, plain_signs, read_number

MAX_DEPTH = 25
MAX_POWER = 5000  # of a number or a letter
MAX_EXPANSION = 40  # power of a bracket
MAX_TERMS = 200

_TEXT = re.compile(r"\\(?:text|mathrm|mbox|textbf|mathbf|textit|operatorname)\s*\{([^{}]*)\}")
_LAYOUT = (
    (re.compile(r"(?<!\\)\\(?:(?:left|right|displaystyle|big|Big|bigg|Bigg)(?![a-zA-Z])|[,;!:])"), ""),
    (re.compile(r"\\[dt]frac"), r"\\frac"),
    (re.compile(r"(?<!\\)\\\s"), " "),
    (re.compile(r"\\?\$"), ""),
    (re.compile(r"\*\*(?=[\s\w({-])"), "^"),
    (re.compile(r"\\mbox"), r"\\text"),
    (re.compile(r"(?<![\\a-zA-Z])(sqrt|pi|sin|cos|tan|ln|log|exp|infty|infinity|frac)(?![a-zA-Z])"), r"\\\1"),
    (re.compile(r"\\infinity"), r"\\infty"),
    (re.compile(r"\\sqrt\(([^()]*)\)"), r"\\sqrt{\1}"),
)
_WORD = re.compile(r"no|[a-z]{3,}|[A-Z][a-zA-Z]+|[A-Za-z]{2,}[ -][A-Za-z -]*[A-Za-z]{2,}")
_NAMES = re.compile(r"(?:sqrt|pi|sin|cos|tan|ln|log|exp|infty)")
_PROSE = re.compile(r"(?<![\\a-zA-Z{])[a-zA-Z]{2,}")
_ALSO = re.compile(r"\s*,?\s*\b(?:or|and)\b\s*", re.IGNORECASE)
_HEDGE = re.compile(r"\b(?:or|and|to|maybe|perhaps|possibly|not|no|but)\b|,", re.IGNORECASE)
_BASE = re.compile(r"\(?([0-9a-zA-Z]+)\)?_\{?(?:\\text\{)?([0-9]+|[a-z]+)\}{0,2}")
_POWER = re.compile(r"(.?)\^\s*\{?\s*\(?\s*-?\s*(\d+)")
_TOWER = re.compile(r"\^\s*(?:\d+|[A-Za-z])\s*\^|[\d)}]\s*\^\s*[{(][^{}]*\^")
_HEAVY = re.compile(r"!\s*!|\d{4,}\s*!|\\(?:int|sum|prod|lim|binom|choose)(?![a-zA-Z])|[eE]\d{3,}|__|\d{1500,}")
_CLOSED_INFINITY = re.compile(r"\[\s*-?\s*\\infty|\\infty\s*\]")
_EMPTY = re.compile(r"\\frac\s*\{[^{}]*\}\s*\{\s*0*\s*\}|/\s*0+(?![\d.])")


class Reading:
    """An answer in the forms in which it may be compared."""

    def __init__(self, statement: str) -> None:
        """Read the statement of an answer, such as what a box holds or the sentence after `the answer is`."""
        statement = _inner_statement(plain_signs(statement))
        self.is_long = len(statement) > MAX_LENGTH
        self.latex = statement if self.is_long else _tidy(statement)
        self.text = _canonical(self.latex)
        self.word = None if self.is_long else _as_word(self.latex)
        self.letter = self.text.lower() if re.fullmatch("[A-Za-z]", self.text) else None
        plain = _TEXT.sub(r" \1 ", self.latex)
        self.percent = "%" in plain
        self.base = _BASE.fullmatch(self.latex.replace(" ", ""))
        with_units = re.sub(r"\^\s*\{?\s*\\circ\s*\}?|\\?%", " ", plain)
        is_plain = not re.search(r"[=<>]|\\(?:le|ge|lt|gt|pm|in)", with_units)
        self.number: Fraction | None = read_number(with_units, alone=True) if is_plain and not self.base else None

    @property
    def parsed(self) -> Any:
        """sympy's objects; an empty list where there are none."""
        heavy = self.is_long or self.word is not None or is_heavy(self.latex)
        return [] if heavy else _parse(self.latex)


def same(reference: Reading, answer: Reading, *, tolerance: float | None) -> bool:
    """Whether two answers are equal. An answer that cannot be read is compared as text."""
    if not answer.text:
        return False
    if reference.text == answer.text:
        return True
    if _EMPTY.search(answer.latex) or _EMPTY.search(reference.latex):
        return False  # a division by zero is no value, and sympy makes an infinity of it
    if reference.word is not None or answer.word is not None:
        return (reference.word or reference.letter) == (answer.word or answer.letter)
    if reference.base is not None or answer.base is not None:
        return reference.base is not None and answer.base is not None and reference.base[0] == answer.base[0]
    if reference.number is not None and answer.number is not None:
        equal = equal_numbers(reference.number, answer.number, tolerance)
        if equal or reference.percent == answer.percent:
            return equal
        a, b = (Fraction(1, 100) if r.percent else Fraction(1) for r in (reference, answer))
        return equal_numbers(reference.number * a, answer.number * b, tolerance)
    if _CLOSED_INFINITY.search(answer.latex):
        return False  # sympy makes an open end of it
    return _equal_values(reference.parsed, answer.parsed)


def without_markup(statement: str) -> str:
    """A statement without the signs that set its formulas and texts apart."""
    plain = _TEXT.sub(r" \1 ", plain_signs(statement))
    plain = re.sub(r"(?<!\\)\\[,!](?=\d{3}(?!\d))", ",", plain)
    return re.sub(r"\\?\$|\\[()\[\]]|\\(?:left|right)|\^\s*\{?\s*\\circ\s*\}?|\*\*", "", plain)


def is_heavy(text: str) -> bool:
    """Whether computing with it could take long: towers and large powers, factorials, sums, deep nesting."""
    depth = deepest = 0
    for c in text:
        depth += (c in "([{") - (c in ")]}")
        deepest = max(deepest, depth)
    if deepest > MAX_DEPTH or text.count(",") + text.count("&") + text.count("+") > MAX_TERMS:
        return True
    if _HEAVY.search(text) or _TOWER.search(text):
        return True
    powers = _POWER.findall(text)
    return any(len(p) > 5 or int(p) > (MAX_POWER if base.isalnum() else MAX_EXPANSION) for base, p in powers)


def _inner_statement(statement: str) -> str:
    """Of a sentence with formulas, the formulas that state the answer; of a sentence without, the sentence."""
    found = formulas(statement)
    if not found:
        return statement
    around = without_formulas(statement).strip(" .*_:")
    if len(found) > 1 and _HEDGE.search(around):
        return ", ".join(found)
    # "either $5$ or 6": what stands beside the formula is part of the answer.
    return f"{found[0]}, {around}" if re.search(r"\d", around) and _HEDGE.search(around) else found[0]


def _tidy(statement: str) -> str:
    for pattern, written in _LAYOUT:
        statement = pattern.sub(written, statement)
    statement = statement.strip().strip("*_").strip().rstrip(".,;:").strip()
    if "\\" not in statement and re.search(r"\d", statement):
        statement = _ALSO.sub(", ", re.sub(r"^either\s+", "", statement, flags=re.IGNORECASE))
        statement = re.sub(r"(?:,\s*){2,}", ", ", statement)
    return statement


def _canonical(latex: str) -> str:
    text = re.sub(r"(?<!\d)\s+|\s+(?!\d)", "", _TEXT.sub(r"\1", latex))
    return re.sub(r"\{(\w)\}", r"\1", text)  # braces around one character say nothing


def _as_word(latex: str) -> str | None:
    """An answer in words, or a single letter that names a choice, in lower case; None where it is mathematics."""
    whole_text = _TEXT.fullmatch(latex.strip())
    plain = " ".join(_TEXT.sub(r" \1 ", latex).replace("{", " ").replace("}", " ").split())
    inside = re.sub(r"^\(\s*(.*?)\s*\)$", r"\1", plain)
    if re.fullmatch(r"[A-Z]", inside) and (whole_text or inside != plain or "\\text" in latex):
        return inside.lower()
    if "\\" in plain or re.search(r"[\d=+*/^<>|&]", inside):
        return None
    if _WORD.fullmatch(inside) and not _NAMES.fullmatch(inside):
        return inside.lower()
    return inside.lower() if whole_text and re.search(r"[a-zA-Z]{2,}", inside) else None


@lru_cache(maxsize=512)
def _parse(latex: str) -> Any:
    from math_verify import LatexExtractionConfig, parse  # sympy: a second

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that we keep the time ourselves
    # Only LaTeX, so that an expression which it cannot read never shrinks to the last number in it.
    return parse(
        f"${latex}$", extraction_config=[LatexExtractionConfig()], fallback_mode="no_fallback", parsing_timeout=None
    )


def _equal_values(reference: Any, answer: Any) -> bool:
    if not reference or not answer:
        return False
    from math_verify import verify

    return bool(verify(reference, answer, timeout_seconds=None))
