"""The checklist of a prompt, from the column of its source or from the config, and the score of what is met of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from judges.protocol import Abstain
from judges.values import read_number
from online_dpo.config.judges.llm import RubricSection

MAX_CRITERIA = 200
"""Of one checklist; a longer one is a mistake, or would not be read with care."""


@dataclass(frozen=True, slots=True)
class Checklist:
    """What an answer is held against."""

    criteria: tuple[str, ...]
    weights: tuple[float, ...]  # one for each, finite, not 0; below 0 of a fault

    def score(self, credits: Sequence[float]) -> float:
        """The weighted sum of credits over the most that can be had.

        At most 1; below 0 where faults outweigh what is met. Where all criteria are faults, from -1 to 0.

        Args:
            credits: of each criterion, from 0 to 1.
        """
        most = math.fsum(w for w in self.weights if w > 0.0) or math.fsum(abs(w) for w in self.weights)
        return math.fsum(w * credit for w, credit in zip(self.weights, credits, strict=True)) / most


def checklist_of(metadata: Mapping[str, Any], rubric: RubricSection) -> Checklist | Abstain:
    """The checklist of a prompt, or why it has none.

    Args:
        metadata: the prompt's further columns.
        rubric: of the judge.
    """
    value = metadata.get(rubric.column) if rubric.column is not None else None
    if value is None or value == []:
        if rubric.criteria:
            return Checklist(tuple(c.criterion for c in rubric.criteria), tuple(c.weight for c in rubric.criteria))
        return Abstain(f"the prompt has no rubric: its column {rubric.column} is missing or empty")
    if not isinstance(value, list) or len(value) > MAX_CRITERIA:
        found = f"{len(value)} criteria" if isinstance(value, list) else f"a {type(value).__name__}"
        return Abstain(f"unreadable rubric: column {rubric.column} holds {found}, and no list of 1 to {MAX_CRITERIA}")
    entries = [_criterion(entry) for entry in value]
    for number, entry in enumerate(entries, start=1):
        if isinstance(entry, str):
            return Abstain(f"unreadable rubric: entry {number} of column {rubric.column} {entry}")
    read = [entry for entry in entries if not isinstance(entry, str)]
    return Checklist(tuple(text for text, _ in read), tuple(weight for _, weight in read))


def _criterion(entry: Any) -> tuple[str, float] | str:
    """Text and weight, or what is wrong."""
    text, weight = entry, None
    if isinstance(entry, Mapping):
        text = entry.get("criterion")
        weights = [entry[name] for name in ("weight", "points") if entry.get(name) is not None]
        if len(weights) > 1:
            return "has both weight and points"
        weight = weights[0] if weights else None
    if not isinstance(text, str) or not text.strip():
        return "has no text"
    number = 1.0 if weight is None else read_number(weight)
    if not number:
        return "has a weight that is 0 or no number"
    return text, number
