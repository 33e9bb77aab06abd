"""Outcome rewards: is the answer that a completion ends with the right one? 1 = yes, 0 = no.

The final answer is what the last marker names, of `\\boxed{...}`, `#### ...` and `the answer is ...`; in a text
without one it is the last number for numeric and symbolic answers, and the whole text for exact ones.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from judges.calling import Caller
from judges.hosting import Hosting
from judges.protocol import Limits, Question, count
from judges.spec import JudgeSpec
from judges.threads import in_thread
from judges.verifier.expressions import MAX_LENGTH, Answer, plain_symbols, read_answer, same_answer
from online_dpo.config.judges.hosted import VerifierJudge
from online_dpo.errors import JudgeError
from online_dpo.types import Verdict

MAX_WORD = 30
"""Characters of a text without a marker or number that is taken as an answer in words."""

_BETWEEN = r"[\s*_:\"'`]{0,5}"
_MARKERS = (
    re.compile(r"####\s{0,5}(?=(.{1,400}))"),
    re.compile(rf"(?i)\banswers?\b{_BETWEEN}(?:(?:is|are|was|=|:){_BETWEEN}){{1,3}}(?=(\S.{{0,400}}))"),
)
_DIGITS = r"\d{1,3}(?:(?:,|\{,\})\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+"
_NUMBER = re.compile(rf"(?<![\w.])(-?)(?:\\?[$€£]\s?)?(-?)((?:{_DIGITS})(?:[eE][+-]?\d+\b)?)")
_IN_DOLLARS = re.compile(r"\s*(?:\$\$?([^$]+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\])")
_TEXT = re.compile(r"\\(?:text|mathrm|mbox|textbf|mathbf)\s*\{([^{}]*)\}")
_SENTENCE_END = re.compile(r"[.;]\s|\s[a-zA-Z]{2,}|\*\*")


def build(spec: JudgeSpec, inner: Mapping[str, Caller], hosting: Hosting) -> Verifier:
    """Build the judge that a spec describes."""
    return Verifier(spec.section, field=spec.field)


class Verifier:
    """Compares answers with a column of the prompts' source. Abstains where it is empty, fails where it is missing."""

    limits = Limits(calls_in_flight=1)  # plain computing: more threads would only wait for each other

    def __init__(self, section: VerifierJudge, *, field: str) -> None:
        self._section, self._field = section, field
        self._pattern = None if section.pattern is None else re.compile(section.pattern)
        self._reference_pattern = None if section.reference_pattern is None else re.compile(section.reference_pattern)

    async def judge(self, questions: Sequence[Question]) -> list[list[Verdict]]:
        verdicts, num_unreadable = await in_thread(self._judge, questions)
        count("num_unreadable_answers", num_unreadable)
        return verdicts

    def _judge(self, questions: Sequence[Question]) -> tuple[list[list[Verdict]], int]:
        found = [self._judge_one(question) for question in questions]
        return [verdicts for verdicts, _ in found], sum(number for _, number in found)

    def _judge_one(self, question: Question) -> tuple[list[Verdict], int]:
        reference = self._reference(question)
        if self._section.method == "regex":
            return [
                question.score(i, float(self._matches(reference, text))) for i, text in enumerate(question.completions)
            ], 0
        expected = self._read(self._final(reference, self._reference_pattern))
        if expected is None:
            reason = f"no {self._section.method} answer in {self._section.answer} ({reference[:60]!r})"
            return question.abstain_from_all(reason), 0
        verdicts, num_unreadable = [], 0
        for i, text in enumerate(question.completions):
            answer = self._read(self._final(text, self._pattern))
            num_unreadable += answer is None
            if answer is None and self._section.unreadable == "abstain":
                verdicts.append(question.abstain(i, "no answer found in the completion"))
            else:
                verdicts.append(question.score(i, float(answer is not None and self._same(answer, expected))))
        return verdicts, num_unreadable

    def _reference(self, question: Question) -> str:
        if self._section.answer not in question.metadata:
            known = ", ".join(question.metadata) or "none"
            raise JudgeError(
                f"{self._field}.answer is {self._section.answer}, and prompt {question.prompt_id} has no such column "
                f"(it has: {known}); name the column of the prompt source that holds the right answer"
            )
        value: Any = question.metadata[self._section.answer]
        return "" if value is None else str(value)

    def _matches(self, reference: str, text: str) -> bool:
        try:
            expected = re.compile(reference)
        except re.error as error:
            raise JudgeError(
                f"{self._field}.answer is {self._section.answer}, which holds {reference[:60]!r}, no regular "
                f"expression ({error}); fix it"
            ) from None
        found = text if self._pattern is None else self._final(text, self._pattern)
        return found is not None and expected.search(found) is not None

    def _final(self, text: str, pattern: re.Pattern[str] | None) -> str | None:
        """The final answer in a text, as it is written; None where there is none."""
        if pattern is not None:
            matches = list(pattern.finditer(text))
            return None if not matches else matches[-1].group(1 if pattern.groups else 0)
        marked = final_answer(text)
        if marked is not None:
            return marked
        if self._section.method == "exact":
            return text
        whole = text.strip()
        if read_answer(whole) is not None:
            return whole
        numbers = list(_NUMBER.finditer(plain_symbols(text)))
        if numbers:
            return numbers[-1].group()
        is_word = self._section.method == "symbolic" and len(whole) <= MAX_WORD and "\n" not in whole
        return whole if is_word else None

    def _read(self, text: str | None) -> str | float | tuple[str, Answer | None] | None:
        """An answer in the form that `_same` compares."""
        if text is None:
            return None
        match self._section.method:
            case "exact":
                plain = text.strip().rstrip(".").strip()
                return plain or None
            case "numeric":
                return read_stated_number(text)
        return _read_symbolic(text)

    def _same(self, answer: Any, expected: Any) -> bool:
        match self._section.method:
            case "exact":
                return bool(answer == expected)
            case "numeric":
                bound = self._section.tolerance * max(abs(answer), abs(expected))
                return bool(abs(answer - expected) <= bound)
        (plain_a, value_a), (plain_b, value_b) = answer, expected
        if value_a is None or value_b is None:
            return value_a is value_b and bool(plain_a == plain_b)
        return same_answer(value_a, value_b, tolerance=self._section.tolerance)


def final_answer(text: str) -> str | None:
    """What the last marker of a text names; None where it has none."""
    found: list[tuple[int, str]] = []
    for marker in _MARKERS:
        for match in marker.finditer(text):
            stated = match.group(1)
            formula = _IN_DOLLARS.match(stated)
            found.append((match.start(), next(filter(None, formula.groups())) if formula else stated))
    for match in re.finditer(r"\\(?:boxed|fbox)\s*\{", text):
        inside = _braced(text, match.end())
        if inside is not None:
            found.append((match.end(), inside))  # its end: a box in the sentence of a marker is that sentence's answer
    return max(found)[1] if found else None


def read_stated_number(text: str) -> float | None:
    """The number that an answer states: what follows its last `=`, else its value as an expression, else its first."""
    stated = plain_symbols(text).rpartition("=")[2]
    if any(sign in stated.replace("\\$", "").replace("\\%", "") for sign in "\\/^"):
        kind, values = read_answer(_SENTENCE_END.split(stated)[0]) or ("", ())
        if kind == "value" and len(set(values[0])) == 1 and values[0][0].imag == 0.0:
            return values[0][0].real
    match = _NUMBER.search(stated)
    if match is None:
        return None
    before, after, digits = match.groups()
    number = float(f"{before or after}{digits.replace(',', '').replace('{}', '')}")
    return number if math.isfinite(number) else None


def _read_symbolic(text: str) -> tuple[str, Answer | None] | None:
    """The answer without spaces, and its value; of a sentence, up to its end or its first word."""
    first = _SENTENCE_END.split(text.strip())[0]
    for part in (text, first):
        value = read_answer(part)
        if value is not None:
            return part, value
    plain = "".join(_TEXT.sub(r"\1", text).split()).strip("$*").rstrip(".").lower()
    return (plain, None) if plain else None


def _braced(text: str, start: int) -> str | None:
    """The text from an opening brace to its closing one; None where that is missing or far away."""
    depth = 1
    for i in range(start, min(len(text), start + MAX_LENGTH)):
        depth += (text[i] == "{") - (text[i] == "}")
        if depth == 0:
            return text[start:i]
    return None
