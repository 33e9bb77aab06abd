"""The child's side of the verifier: one completion at a time is compared with its reference."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from judges.verifier import symbolic
from judges.verifier.final_answers import final_answer, first_sentence, formulas
from judges.verifier.numbers import equal_numbers, last_number, read_number
from online_dpo.errors import JudgeError

MAX_WORDS = 60
"""Characters of a text without a marker that is taken as the answer itself."""


class Comparison:
    """The rules of a verifier's section."""

    def __init__(
        self, *, method: str, pattern: str | None, reference_pattern: str | None, tolerance: float | None, field: str
    ) -> None:
        """Compile the patterns; the arguments are the section's fields, and its place in the config."""
        self._method, self._tolerance, self._field = method, tolerance, field
        self._pattern = None if pattern is None else re.compile(pattern)
        self._reference_pattern = None if reference_pattern is None else re.compile(reference_pattern)
        self._read_reference = lru_cache(maxsize=64)(self._read_reference_anew)

    def compare_all(self, reference: str, texts: Sequence[str]) -> list[str]:
        """`compare` for each text."""
        return [self.compare(reference, text) for text in texts]

    def compare(self, reference: str, text: str) -> str:
        """What is to be said of a completion.

        Args:
            reference: what the column holds.
            text: the completion.

        Returns:
            `right`, `wrong`, `unreadable` (no answer in the completion) or `no reference` (none in the column).

        Raises:
            JudgeError: `method` is regex, and the reference is no regular expression.
        """
        expected = self._read_reference(reference)
        if expected is None:
            return "no reference"
        if self._method == "regex":
            found = text if self._pattern is None else _last_match(self._pattern, text)
            return "right" if found is not None and expected.search(found) is not None else "wrong"
        answer = self._read(text)
        if answer is None:
            return "unreadable"
        return "right" if self._same(expected, answer) else "wrong"

    def _read_reference_anew(self, reference: str) -> Any:
        """The reference in the form of its method. It is never less than the whole, except by a marker or pattern."""
        if self._method == "regex":
            try:
                return re.compile(reference)
            except re.error as error:
                raise JudgeError(
                    f"{self._field} holds {reference[:60]!r}, no regular expression ({error}); fix it"
                ) from None
        pattern = self._reference_pattern
        stated = (final_answer(reference) or reference) if pattern is None else _last_match(pattern, reference)
        if stated is None or not stated.strip():
            return None
        match self._method:
            case "exact":
                return _plain(stated)
            case "numeric":
                return _number(stated)
        return symbolic.Reading(stated)

    def _read(self, text: str) -> Any:
        """The answer of a completion in the form of its method; None where there is none."""
        stated = final_answer(text) if self._pattern is None else _last_match(self._pattern, text)
        match self._method:
            case "exact":
                stated = text if stated is None and self._pattern is None else stated
                return None if stated is None else _plain(stated)
            case "numeric":
                if stated is None:
                    return _unmarked_number(text) if self._pattern is None else None
                return _number(stated)
        if stated is None and self._pattern is None:
            stated = _unmarked_expression(text)
        reading = None if stated is None else symbolic.Reading(stated)
        return reading if reading is not None and reading.text else None

    def _same(self, expected: Any, answer: Any) -> bool:
        match self._method:
            case "exact":
                return bool(expected == answer)
            case "numeric":
                return equal_numbers(expected, answer, self._tolerance)
        return symbolic.same(expected, answer, tolerance=self._tolerance)


def _last_match(pattern: re.Pattern[str], text: str) -> str | None:
    matches = list(pattern.finditer(text))
    return matches[-1].group(1 if pattern.groups else 0) if matches else None


def _plain(text: str) -> str | None:
    return text.strip().rstrip(".").strip() or None


def _number(statement: str) -> Any:
    """Of a sentence with a formula, the number is in the formula; one after another is one of several."""
    return read_number(symbolic.without_markup(statement))


def _unmarked_number(text: str) -> Any:
    plain = symbolic.without_markup(text)
    whole = read_number(plain.strip().rstrip("."), alone=True)
    return last_number(plain) if whole is None else whole


def _unmarked_expression(text: str) -> str | None:
    """The last formula of a text, the text where it is short, or its last number."""
    if found := formulas(text):
        return found[-1]
    whole = first_sentence(text.strip())
    if len(text.strip()) <= MAX_WORDS and "\n" not in text.strip():
        return whole or None
    if "\\" in whole.rpartition("\n")[2]:
        return None  # mathematics that nothing sets apart: a number in it is only a part of it
    number = last_number(text)
    return None if number is None else str(number)
