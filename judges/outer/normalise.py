"""A judge around another one, that puts its scores on another scale.

Nothing is remembered from one question to the next, so a resumed run repeats the verdicts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from judges.calling import Caller, Measurements
from judges.hosting import Hosting
from judges.protocol import Question
from judges.spec import JudgeSpec
from online_dpo.config.judges.section import NormaliseJudge
from online_dpo.errors import JudgeError
from online_dpo.types import Verdict


def build(spec: JudgeSpec, inner: Mapping[str, Caller], hosting: Hosting) -> Normalise:
    """Build the judge around the one whose scores it changes."""
    return Normalise(spec.section, inner["judge"], field=spec.field)


class Normalise:
    """Puts the scores of another judge on another scale."""

    def __init__(self, section: NormaliseJudge, inner: Caller, *, field: str) -> None:
        self._section, self._inner, self._field = section, inner, field

    async def judge(self, questions: Sequence[Question], measured: Measurements | None = None) -> list[list[Verdict]]:
        return [self._normalise(verdicts) for verdicts in await self._inner.ask(questions, measured)]

    def _normalise(self, verdicts: Sequence[Verdict]) -> list[Verdict]:
        if any(verdict.probability is not None for verdict in verdicts):
            raise JudgeError(
                f"{self._field}.judge compares completions, and only scores can be normalised; choose a judge that "
                f"scores, or take {self._field} away"
            )
        scores = [verdict.score for verdict in verdicts if verdict.score is not None]
        return [
            verdict if verdict.score is None else self._changed(verdict, verdict.score, scores) for verdict in verdicts
        ]

    def _changed(self, verdict: Verdict, score: float, scores: Sequence[float]) -> Verdict:
        section = self._section
        if section.method == "fixed":
            shift, scale = section.shift or 0.0, section.scale or 1.0
        elif section.method == "z_score" and min(scores) < max(scores):
            shift = math.fsum(scores) / len(scores)
            scale = math.sqrt(math.fsum((s - shift) ** 2 for s in scores) / len(scores))
        elif section.method == "z_score":
            shift, scale = score, 1.0  # the mean of equal numbers may be off by a bit
        else:
            # Position among the prompt's other scores, in [0, 1]; equal ones share theirs.
            below = sum(s < score for s in scores) + 0.5 * (sum(s == score for s in scores) - 1)
            place = below / (len(scores) - 1) if len(scores) > 1 else 0.5
            return replace(verdict, score=self._clipped(place), uncertainty=None)
        uncertainty = None if verdict.uncertainty is None else verdict.uncertainty / scale
        return replace(verdict, score=self._clipped((score - shift) / scale), uncertainty=uncertainty)

    def _clipped(self, value: float) -> float:
        if self._section.clip is None:
            return value
        lowest, highest = self._section.clip
        return min(max(value, lowest), highest)
