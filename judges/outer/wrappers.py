"""Judges that change what another judge says, verdict by verdict or prompt by prompt.

Nothing here remembers anything: a verdict depends on its question alone, so resumed runs repeat it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from judges.calling import Caller
from judges.protocol import Question
from online_dpo.config.judges.section import LengthPenaltyJudge, NormaliseJudge
from online_dpo.errors import JudgeError
from online_dpo.pairing.opinions import logit, sigmoid
from online_dpo.types import Verdict


class LengthPenalty:
    """Takes `rate` for each word or character beyond `free` off scores, and off the logits of probabilities."""

    def __init__(self, section: LengthPenaltyJudge, inner: Caller) -> None:
        self._section, self._inner = section, inner

    async def judge(self, questions: Sequence[Question]) -> list[list[Verdict]]:
        answers = await self._inner.ask(questions)
        return [self._penalise(question, found) for question, found in zip(questions, answers, strict=True)]

    def _penalise(self, question: Question, verdicts: Sequence[Verdict]) -> list[Verdict]:
        penalties = [self._penalty(text) for text in question.completions]
        changed = []
        for verdict in verdicts:
            if verdict.score is not None:
                verdict = replace(verdict, score=verdict.score - penalties[verdict.first])
            elif verdict.probability is not None and verdict.second is not None:
                handicap = penalties[verdict.second] - penalties[verdict.first]
                if handicap != 0.0:
                    verdict = replace(verdict, probability=sigmoid(logit(verdict.probability) + handicap))
            changed.append(verdict)
        return changed

    def _penalty(self, text: str) -> float:
        length = len(text.split()) if self._section.unit == "words" else len(text)
        return self._section.rate * max(0, length - self._section.free)


class Normalise:
    """Scores on another scale; takes a judge that scores."""

    def __init__(self, section: NormaliseJudge, inner: Caller, *, field: str) -> None:
        self._section, self._inner, self._field = section, inner, field

    async def judge(self, questions: Sequence[Question]) -> list[list[Verdict]]:
        return [self._normalise(verdicts) for verdicts in await self._inner.ask(questions)]

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
