"""Numbers as people write them -> exact fractions. Strict: what could be read in two ways is no number."""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction

MAX_LENGTH = 400  # characters of a statement
MAX_EXPONENT = 1000

_SIGNS = {
    "\u2212": "-",  # minus sign
    "\u2013": "-",  # en dash
    "\u2010": "-",
    "\u2011": "-",
    "\u00d7": "*",  # multiplication sign
    "\u22c5": "*",
    "\u00b7": "*",
    "\u00f7": "/",
    "\u2044": "/",
    "\u03c0": r"\pi ",
    "\u221e": r"\infty ",
    "\u00b0": r"^\circ ",
    "\u2264": r"\le ",
    "\u2265": r"\ge ",
    "\u222a": r"\cup ",
    "\u00b1": r"\pm ",
    **dict(
        zip("\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079", (f"^{i}" for i in range(10)), strict=True)
    ),
}
_ROOT = re.compile("\u221a\\s*(?:\\(([^()]*)\\)|([0-9]+|[A-Za-z]))")
_HALVES = re.compile("(?<=\\d)(?=[\u00bc-\u00be\u2150-\u215e])")
_TABLE = str.maketrans(_SIGNS)

_INTEGER = r"\d{1,3}(?:,\d{3})+(?!\d)|\d{1,3}(?:\{,\}\d{3})+(?!\d)|\d{1,3}(?:(?: |\\,|\\ |\\!,)\d{3})+(?!\d)|\d+"
_DECIMAL = rf"(?:{_INTEGER})(?:\.\d+)?|\.\d+"
_FRACTION = r"\\[dt]?frac\s*(?:\{\s*(-?\d+)\s*\}|(\d))\s*(?:\{\s*(-?\d+)\s*\}|(\d))"
_NUMBER = re.compile(
    rf"(?<![\w.^])(?<![+-][+-])(?:(?<![+-])(?P<sign>[-+]))?\s?(?:\\?[$\u20ac\u00a3]\s?)?(?P<minus>-?)"
    rf"(?:(?P<whole>\d+)?\s*{_FRACTION}"
    r"|(?P<mixed>\d+) (?P<above>\d+)/(?P<below>\d+)"
    rf"|(?P<top>{_DECIMAL})\s?/\s?(?P<bottom>{_DECIMAL})"
    rf"|(?P<plain>{_DECIMAL})(?:(?:[eE]|\s?(?:\\times|\*)\s?10\s?\^\s?)\{{?(?P<power>[-+]?\d+)\}}?)?)"
)
_SEPARATORS = re.compile(r"\{,\}|\\!,|\\,|\\ |[, ]")
_REASON = re.compile(r"\b(?:because|since|which|where|so|as|giving|making|leaving)\b", re.IGNORECASE)
_REMARK = re.compile(r"\([^()]*=[^()]*\)")
_LIST = re.compile(r"[(\[{][^()\[\]{}]*,[^()\[\]{}]*[)\]}]")
_DENIED = re.compile(r"(?:\bnot|\bnever|n't)\b", re.IGNORECASE)
_NEGATIVE = re.compile(r"\b(?:minus|negative)\s*$", re.IGNORECASE)
_GOES_ON = re.compile(
    r"\s*(?:[-+*^]\s*[\w(\\]|/\s*[-\d(\\]|!|\\(?:times|cdot|div|pm|sqrt|pi|frac|[dt]frac))|[.,:]\d|\s+\.?\d|_|\("
    r"|\)\s*[\w(]"
    r"|(?!\s+an?\s+[a-zA-Z]{2})\s*[a-zA-Z](?<![mgshLlCFVWJNA])\b"  # a variable
    r"|(?is:.*?(?:,|;|\b(?:or|and|to|through|but|no|not)\b)[^\d]*\d)"  # other numbers beside it
)
_OPERAND = re.compile(r"(?:(?<![A-Za-z])[A-Za-z]|[\d)\]}])\s*[-+*/^]\s*$|[\w)]\($")
_COMMAND = re.compile(r"\\(?!(?:approx|quad|implies|Rightarrow|therefore|displaystyle|mbox|ldots)\b)[a-zA-Z]")
_LABEL = re.compile(r"(?!.*(?<![A-Za-z])[A-Za-z](?![A-Za-z]))[A-Za-z\s:]*", re.DOTALL)
_SCALE = re.compile(r"\s*\b(hundred|thousand|million|billion|trillion|dozen)\b", re.IGNORECASE)
_SCALES = {"dozen": 12, "hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_UNIT = re.compile(r"(?:[A-Za-z.%/\s-]|\^\s?\{?[23]\}?)*")
_BEFORE_LAST = re.compile(r"\d[^\d.;\n]{0,20}?(?:\bor\b|,|\band\b|\bto\b|-)\W{0,4}(?:\bor\b|\band\b)?\W{0,4}$")


def plain_signs(text: str) -> str:
    """Signs that look like ASCII ones, full-width digits and superscripts, as these."""
    text = _ROOT.sub(lambda m: rf"\sqrt{{{m.group(1) or m.group(2)}}}", text)
    text = _HALVES.sub(" ", text).translate(_TABLE)
    return unicodedata.normalize("NFKC", text).translate(_TABLE)


def read_number(statement: str, *, alone: bool = False) -> Fraction | None:
    """The one number that a statement gives: `$1,200`, `72 eggs`, `2 1/2`, `x = 5`, `3 * 24 = 72`.

    None for expressions, variables, lists, ranges and alternatives. Signs of currency and percent, and units, are no
    part of the number. With `alone`, nothing but the number and its unit may be there.
    """
    if len(statement) > MAX_LENGTH:
        return None
    if alone:
        return _read(plain_signs(statement), alone=True)
    text = _REMARK.sub("", _REASON.split(plain_signs(statement))[0]).replace("*" * 2, "")
    left, equals, right = text.rpartition("=")
    found = _read(right)
    return _read(left) if found is None and equals and "=" not in left else found


def last_number(text: str) -> Fraction | None:
    """The last number of a text that marks no answer; None where it is one of several alternatives."""
    text = plain_signs(text[-4 * MAX_LENGTH :])
    matches = list(_NUMBER.finditer(text))
    if not matches or _BEFORE_LAST.search(text[: matches[-1].start()]):
        return None
    return _value(matches[-1])


def equal_numbers(a: Fraction, b: Fraction, tolerance: float | None) -> bool:
    """Whether two numbers are equal: an integer exactly and others to 1e-9, or all to a relative tolerance."""
    if tolerance is None:
        if 1 in (a.denominator, b.denominator):
            return a == b
        tolerance = 1e-9
    return abs(a - b) <= Fraction(tolerance) * max(abs(a), abs(b))


def _read(text: str, *, alone: bool = False) -> Fraction | None:
    match = _NUMBER.search(text)
    if match is None:
        return None
    before, after = text[: match.start()], text[match.end() :]
    if alone and not (_LABEL.fullmatch(before.strip()) and _UNIT.fullmatch(after)):
        return None
    if _OPERAND.search(before + (match["sign"] or "")) or _COMMAND.search(before) or _COMMAND.search(after):
        return None
    if _DENIED.search(before) or _GOES_ON.match(after) or _LIST.search(_SEPARATORS.sub(_keep_commas, text)):
        return None
    value, scale = _value(match), _SCALE.match(after)
    if value is not None and scale:
        value *= _SCALES[scale.group(1).lower()]
    return -value if value is not None and _NEGATIVE.search(before) else value


def _keep_commas(match: re.Match[str]) -> str:
    """Thousands separators are no commas of a list."""
    text, end = match.string, match.end()
    grouped = match.start() > 0 and text[match.start() - 1].isdigit() and re.match(r"\d{3}(?!\d)", text[end:])
    return "" if grouped and match.group() != " " else match.group()


def _value(match: re.Match[str]) -> Fraction | None:
    groups = match.groupdict()
    above, below = (next((g for g in match.groups()[i : i + 2] if g), None) for i in _FRACTION_GROUPS)
    negative = (groups["sign"] == "-") != (groups["minus"] == "-")
    try:
        if above is not None and below is not None:
            value = int(groups["whole"] or 0) + Fraction(int(above), int(below))
        elif groups["mixed"]:
            value = int(groups["mixed"]) + Fraction(int(groups["above"]), int(groups["below"]))
        elif groups["top"]:
            value = _decimal(groups["top"]) / _decimal(groups["bottom"])
        else:
            power = int(groups["power"] or 0)
            if abs(power) > MAX_EXPONENT:
                return None
            value = _decimal(groups["plain"]) * Fraction(10) ** power
    except (ValueError, ZeroDivisionError):  # too many digits, or nothing to divide by
        return None
    return -value if negative else value


def _decimal(text: str) -> Fraction:
    return Fraction(_SEPARATORS.sub("", text))


_FRACTION_GROUPS = tuple(_NUMBER.groupindex["whole"] + i for i in (0, 2))
"""Where the numerator's and the denominator's two forms begin among the groups."""
