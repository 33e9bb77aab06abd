"""A judge around another one, that takes something off for long completions.

Nothing is remembered from one question to the next, so a resumed run repeats the verdicts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from judges.calling import Caller, Measurements
from judges.hosting import Hosting
from judges.protocol import Question
from judges.spec import JudgeSpec
from online_dpo.config.judges.section import LengthPenaltyJudge
from online_dpo.pairing.opinions import logit, sigmoid
from online_dpo.types import Verdict


def build(spec: JudgeSpec, inner: Mapping[str, Caller], hosting: Hosting) -> LengthPenalty:
    """Build the judge around the one whose verdicts it changes."""
    return LengthPenalty(spec.section, inner["judge"])


class LengthPenalty:
    """Takes `rate` for each word or character beyond `free` off scores, and off the logits of probabilities."""

    def __init__(self, section: LengthPenaltyJudge, inner: Caller) -> None:
        self._section, self._inner = section, inner

    async def judge(self, questions: Sequence[Question], measured: Measurements | None = None) -> list[list[Verdict]]:
        answers = await self._inner.ask(questions, measured)
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
