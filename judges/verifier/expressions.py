"""Mathematical answers as models write them -> values that can be compared, without running anything they say.

A strict parser of arithmetic, of the LaTeX that is usual in answers, and of lists of these. What has variables is
compared by its values at fixed points: two expressions that agree at all of them to nine digits count as equal. Each
step is bounded, so no text can make the comparison hang.
"""

from __future__ import annotations

import cmath
import math
import re
from collections.abc import Sequence

MAX_LENGTH = 400  # characters
MAX_DEPTH = 40
POINTS = (0.7310585, -1.3063779, 2.2360701, -0.4142137)
"""Values of the variables: away from where usual functions agree by chance, on both sides of zero."""

Values = tuple[complex, ...]  # at each of POINTS
Answer = tuple[str, tuple[Values, ...]]  # how its parts are held together, and the parts

_TOKEN = re.compile(r"\s*(\d[\d_]*\.?\d*(?:[eE][+-]?\d+)?|\.\d+|\\[a-zA-Z]+|[a-zA-Z]|.)", re.DOTALL)
_FUNCTIONS = {
    "sqrt": cmath.sqrt,
    "ln": cmath.log,
    "log": cmath.log10,
    "exp": cmath.exp,
    "sin": cmath.sin,
    "cos": cmath.cos,
    "tan": cmath.tan,
}
_CONSTANTS = {"pi": cmath.pi, "e": cmath.e, "i": 1j}
_SPELLINGS = (
    (re.compile(r"\\(?:left|right|displaystyle|,|;|!|:|\s)"), ""),
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"\\[dt]frac"), r"\\frac"),
    (re.compile(r"\\(?:text|mathrm|mbox|textbf|mathbf)\s*\{([^{}]*)\}"), ""),
    (re.compile(r"\^\s*(?:\{\s*)?\\circ(?:\s*\})?"), ""),
    (re.compile(r"\\(?:cdot|times)"), "*"),
    (re.compile(r"\\div"), "/"),
    (re.compile(r"\\?[%$]"), ""),
    (re.compile(r"(?<=\d),(?=\d{3}(?!\d))"), ""),  # thousands
    (re.compile(r"\*\*"), "^"),
    (re.compile(r"(\d+)\s*\\frac\s*\{(\d+)\}\s*\{(\d+)\}"), r"(\1+\2/\3)"),  # mixed numbers
    (re.compile(r"(?<![\d.])(\d+)\s+(\d+)/(\d+)(?!\d)"), r"(\1+\2/\3)"),
)
_WORD = re.compile(r"(?<![\\a-zA-Z])[a-zA-Z]{3,}")  # no product of so many letters: words are compared as text
_NAMES = re.compile("|".join([*_FUNCTIONS, "pi"]))
_SYMBOLS = str.maketrans(
    {
        "\u2212": "-",  # minus sign
        "\u2013": "-",  # en dash
        "\u00d7": "*",  # multiplication sign
        "\u00b7": "*",
        "\u00f7": "/",
        "\u03c0": r"\pi ",
        "\u221a": r"\sqrt ",
        "\u00b2": "^2",
        "\u00b3": "^3",
        "\u00a0": " ",
        "\u202f": " ",
    }
)


class _Unreadable(Exception):
    """The text is no expression of this grammar."""


def read_answer(text: str) -> Answer | None:
    """The value of an answer: a number, an expression, an interval or tuple, or a set; None where it is none.

    A name before `=` is left out, so that `x = 5` is 5. Parts after a comma make a list, whose order counts in
    parentheses and brackets and does not in braces or on its own. A percent or currency sign is no part of it.
    """
    if len(text) > MAX_LENGTH:
        return None
    text = plain_symbols(text)
    for pattern, written in _SPELLINGS:
        text = pattern.sub(written, text)
    text = text.strip().rstrip(".").strip()
    text = re.sub(r"^\\?[a-zA-Z]\w{0,15}(?:\([a-zA-Z]\))?\s*=\s*(?=[^=])", "", text)
    if _WORD.search(_NAMES.sub(" ", text)):
        return None
    kind, parts = _split_list(text)
    try:
        return kind, tuple(_Parser(part).read() for part in parts)
    except (_Unreadable, ValueError, ArithmeticError):
        return None


def plain_symbols(text: str) -> str:
    """Signs that look like ASCII ones, as these."""
    return text.translate(_SYMBOLS)


def same_answer(a: Answer, b: Answer, *, tolerance: float) -> bool:
    """Whether two answers are equal, each number to within a relative tolerance."""
    (kind_a, parts_a), (kind_b, parts_b) = a, b
    if kind_a != kind_b or len(parts_a) != len(parts_b):
        return False
    if kind_a != "set":
        return all(_close(x, y, tolerance) for x, y in zip(parts_a, parts_b, strict=True))
    left = list(parts_b)
    for part in parts_a:
        match = next((i for i, other in enumerate(left) if _close(part, other, tolerance)), None)
        if match is None:
            return False
        del left[match]
    return True


def _close(a: Values, b: Values, tolerance: float) -> bool:
    bound = max(tolerance, 1e-9)
    return all(abs(x - y) <= bound * max(abs(x), abs(y), 1e-6) for x, y in zip(a, b, strict=True))


def _split_list(text: str) -> tuple[str, list[str]]:
    """Kind and parts: `value` for one, `set`, or the two brackets of a tuple or interval."""
    opening, closing = text[:1], text[-1:]
    body, kind = text, "set"
    if text.startswith(r"\{") and text.endswith(r"\}"):
        body = text[2:-2]
    elif opening in ("(", "[") and closing in (")", "]") and len(_at_top_level(text[1:-1])) > 1:
        body, kind = text[1:-1], opening + closing
    elif opening == "{" and closing == "}":
        body = text[1:-1]
    parts = _at_top_level(body)
    return ("value", parts) if len(parts) == 1 else (kind, parts)


def _at_top_level(text: str) -> list[str]:
    """The parts between commas that are in no bracket."""
    parts, depth, start = [], 0, 0
    for i, c in enumerate(text):
        depth += (c in "([{") - (c in ")]}")
        if c == "," and depth == 0:
            parts.append(text[start:i])
            start = i + 1
    return [*parts, text[start:]]


class _Parser:
    """Recursive descent over one expression; values at all points are computed on the way."""

    def __init__(self, text: str) -> None:
        self._tokens: Sequence[str] = [t for t in _TOKEN.findall(text.strip()) if t.strip()]
        self._next, self._depth = 0, 0

    def read(self) -> Values:
        value = self._sum()
        if self._peek():
            raise _Unreadable
        if not all(cmath.isfinite(v) for v in value):
            raise _Unreadable
        return value

    def _peek(self) -> str:
        return self._tokens[self._next] if self._next < len(self._tokens) else ""

    def _take(self, *wanted: str) -> bool:
        found = self._peek() in wanted
        self._next += found
        return found

    def _expect(self, token: str) -> None:
        if not self._take(token):
            raise _Unreadable

    def _sum(self) -> Values:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise _Unreadable
        sign = self._sign()
        value = tuple(sign * v for v in self._product())
        while self._peek() in ("+", "-"):
            sign = self._sign()
            value = tuple(v + sign * w for v, w in zip(value, self._product(), strict=True))
        self._depth -= 1
        return value

    def _sign(self) -> float:
        sign = 1.0
        while self._peek() in ("+", "-"):
            sign = -sign if self._take("-") else sign
            self._take("+")
        return sign

    def _product(self) -> Values:
        value = self._power()
        while True:
            if self._take("*"):
                value = tuple(v * w for v, w in zip(value, self._signed_power(), strict=True))
            elif self._take("/"):
                value = tuple(v / w for v, w in zip(value, self._signed_power(), strict=True))
            elif self._begins_factor():
                number = self._peek()[0].isdigit()
                mixed = number and self._tokens[self._next - 1][-1].isdigit()
                if mixed:  # two numbers side by side are no product
                    raise _Unreadable
                value = tuple(v * w for v, w in zip(value, self._power(), strict=True))
            else:
                return value

    def _begins_factor(self) -> bool:
        token = self._peek()
        return bool(token) and (token[0].isalnum() or token[0] in "([{\\." or token in "([{") and token != "\\}"

    def _signed_power(self) -> Values:
        sign = self._sign()
        return tuple(sign * v for v in self._power())

    def _power(self) -> Values:
        base = self._atom()
        while self._take("!"):
            base = tuple(_factorial(v) for v in base)
        if not self._take("^"):
            return base
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise _Unreadable
        exponent = self._signed_power()
        self._depth -= 1
        return tuple(v**w for v, w in zip(base, exponent, strict=True))

    def _atom(self) -> Values:
        token = self._peek()
        self._next += 1
        if token and (token[0].isdigit() or (token[0] == "." and len(token) > 1)):
            return self._constant(float(token.replace("_", "")))
        closing = {"(": ")", "[": "]", "{": "}", "|": "|"}.get(token)
        if closing:
            value = self._sum()
            self._expect(closing)
            return tuple(complex(abs(v)) for v in value) if token == "|" else value
        if token == r"\frac":
            above, below = self._argument(), self._argument()
            return tuple(v / w for v, w in zip(above, below, strict=True))
        name = token.removeprefix("\\")
        if token == r"\sqrt" and self._take("["):
            degree = self._sum()
            self._expect("]")
            return tuple(v ** (1.0 / d) for v, d in zip(self._argument(), degree, strict=True))
        name = self._word(name)
        if name in _FUNCTIONS:
            return tuple(_FUNCTIONS[name](v) for v in self._argument())
        if name in _CONSTANTS:
            return self._constant(_CONSTANTS[name])
        if len(name) == 1 and name.isascii() and name.isalpha():
            factor = 1.0 + 0.0512345 * (ord(name.lower()) - ord("a") + 0.5 * name.isupper())  # another for each letter
            return tuple(complex(point * factor) for point in POINTS)
        raise _Unreadable

    def _word(self, first: str) -> str:
        """`pi` and function names written without a backslash come as single letters."""
        for name in (*_FUNCTIONS, "pi"):
            rest = self._tokens[self._next : self._next + len(name) - 1]
            if len(first) == 1 and first + "".join(rest) == name and len(rest) == len(name) - 1:
                self._next += len(rest)
                return name
        return first

    def _argument(self) -> Values:
        """Of a function: a group, or one number, letter or command; the digits of `\\frac12` are one each."""
        token = self._peek()
        if token.isdigit() and len(token) > 1 and self._tokens[self._next - 1] == r"\frac":
            self._tokens = [*self._tokens[: self._next], *token, *self._tokens[self._next + 1 :]]
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise _Unreadable
        value = self._atom()
        self._depth -= 1
        return value

    @staticmethod
    def _constant(value: complex) -> Values:
        return (complex(value),) * len(POINTS)


def _factorial(value: complex) -> complex:
    number = value.real
    if value.imag or not number.is_integer() or not 0 <= number <= 170:
        raise _Unreadable
    return complex(math.factorial(int(number)))
