"""Where the final answer stands in a text: the last `\\boxed{...}`, `#### ...` or `the answer is ...`."""

from __future__ import annotations

import re

MAX_LENGTH = 400  # characters of an answer

_BETWEEN = r"[\s*_:\"'`]{0,5}"
_REMARKS = "(?:correct|incorrect|wrong|reasonable|consistent|plausible|valid|verified|indeed|unique)"
_HASHES = re.compile(r"####\s{0,5}(?=(.{1,400}))")
_SENTENCE = re.compile(
    rf"(?is)\banswers?\b{_BETWEEN}(?:(?:is|are|was|=|:){_BETWEEN}){{1,3}}(?=(\S.{{0,400}}))(?!{_REMARKS}\b)"
)
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_BRACE = re.compile("[{}]")
_ALSO = re.compile(r"[\s$\\()\[\]]{0,8}(?:,|,?\s*(?:or|and))[\s$\\()\[\]]{0,8}")
_SENTENCE_END = re.compile(r"(?<!\\)[.;!?](?=\s|[*_]*$)|\*\*(?=\s*$)|\n")
_FORMULA = re.compile(r"\$\$(.+?)\$\$|(?<![\\\d])\$([^$\n]+?)(?<!\\)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)


def final_answer(text: str) -> str | None:
    """What the last marker of a text names, up to the end of its sentence; None where there is no marker.

    After a box only another box or `####` counts: what follows is a check of the answer. Boxes that are joined by a
    comma, `or` or `and` are one answer, a list.
    """
    boxes, markers = _boxes(text), list(_HASHES.finditer(text))[-1:]
    if not boxes:
        markers += list(_SENTENCE.finditer(text))[-1:]
    found = [(match.start(), first_sentence(match.group(1))) for match in markers]
    while boxes:
        start, end, inside = boxes.pop()
        while boxes and _ALSO.fullmatch(text[boxes[-1][1] : start]):
            start, _, before = boxes.pop()
            inside = f"{before}, {inside}"
        found.append((end, inside))
    return max(found)[1] if found else None


def first_sentence(text: str) -> str:
    """A text up to the end of its first sentence; points inside numbers and formulas end none."""
    formulas = [m.span() for m in _FORMULA.finditer(text)]
    for match in _SENTENCE_END.finditer(text):
        if not any(start <= match.start() < end for start, end in formulas):
            return text[: match.start()]
    return text


def formulas(text: str) -> list[str]:
    """What stands between dollar signs, `\\(...\\)` or `\\[...\\]`."""
    return [next(group for group in m.groups() if group is not None).strip() for m in _FORMULA.finditer(text)]


def without_formulas(text: str) -> str:
    """A text with a blank in the place of each formula."""
    return _FORMULA.sub(" ", text)


def _boxes(text: str) -> list[tuple[int, int, str]]:
    """Start, end and content of each box that is closed, outermost ones only."""
    found: list[tuple[int, int, str]] = []
    for match in _BOX.finditer(text):
        if found and match.start() < found[-1][1]:
            continue
        depth = 1
        for brace in _BRACE.finditer(text, match.end(), match.end() + MAX_LENGTH):
            depth += 1 if brace.group() == "{" else -1
            if depth == 0:
                found.append((match.start(), brace.end(), _unboxed(text[match.end() : brace.start()])))
                break
    return found


def _unboxed(inside: str) -> str:
    """What a box holds that holds nothing but a box."""
    while (match := _BOX.match(inside.strip())) and inside.strip().endswith("}"):
        inside = inside.strip()[match.end() : -1]
    return inside
