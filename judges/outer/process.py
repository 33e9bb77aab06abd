"""Scores of steps -> the score of a completion."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from judges.calling import Caller, Measurements
from judges.hosting import Hosting
from judges.isolation.failures import kind_of
from judges.isolation.memory import limit_bytes
from judges.isolation.process import Child
from judges.isolation.queueing import FAILURES, OneByOne
from judges.protocol import Question
from judges.spec import JudgeSpec
from online_dpo.config.judges.section import ProcessJudge
from online_dpo.errors import JudgeError
from online_dpo.types import Verdict

TIMEOUT_S = 10.0
"""How long the pattern may take over one completion."""

START_TIMEOUT_S = 120.0


def build(spec: JudgeSpec, inner: Mapping[str, Caller], hosting: Hosting) -> Process:
    """Build the judge around the one that scores steps."""
    return Process(spec.section, inner["judge"], field=spec.field)


class Process:
    """Has an inner judge score each step of a completion, and aggregates. Steps that are blank are none."""

    def __init__(self, section: ProcessJudge, inner: Caller, *, field: str) -> None:
        self._section, self._inner, self._field = section, inner, field
        child = Child(
            "judges.outer.steps:Steps",
            {"split": section.split},
            start_timeout_s=START_TIMEOUT_S,
            memory_limit_bytes=limit_bytes(None),
            memory_setting="half of the machine's memory",
        )
        self._work = OneByOne(child, timeout_s=TIMEOUT_S)

    async def judge(self, questions: Sequence[Question], measured: Measurements | None = None) -> list[list[Verdict]]:
        """Asks one question for each completion, whose completions are the steps; all of them in one go."""
        texts = [(q, i, await self._steps(text)) for q in questions for i, text in enumerate(q.completions)]
        asked = [
            replace(q, prompt_id=f"{q.prompt_id}/{i}", completions=tuple(steps))
            for q, i, steps in texts
            if steps and not isinstance(steps, Exception)
        ]
        answers = iter(await self._inner.ask(asked, measured))
        verdicts: dict[str, list[Verdict]] = {q.prompt_id: [] for q in questions}
        for question, i, steps in texts:
            if isinstance(steps, Exception):
                reason = f"{self._field}.split found no steps: {kind_of(steps)}: {steps}"
                found = question.abstain(i, reason, kind="failed")
            elif steps:
                found = self._aggregate(question, i, next(answers))
            else:
                found = question.abstain(i, "the completion has no step")
            verdicts[question.prompt_id].append(found)
        return [verdicts[q.prompt_id] for q in questions]

    async def _steps(self, text: str) -> list[str] | Exception:
        """What the inner judge sees of each step, in order; or why the pattern found none."""
        try:
            spans = await self._work.ask("find", text)
        except FAILURES as error:
            return error
        return [text[:stop] if self._section.sees == "prefix" else text[start:stop] for start, stop in spans]

    def _aggregate(self, question: Question, position: int, verdicts: Sequence[Verdict]) -> Verdict:
        scores: dict[int, float] = {}
        for verdict in sorted(verdicts, key=lambda v: v.first):
            if verdict.second is not None:
                raise JudgeError(
                    f"{self._field}.judge compares completions, and steps are scored one by one; choose a judge that "
                    f"scores, such as a reward model"
                )
            if verdict.unasked:
                return question.abstain(position, str(verdict.reason), kind="unasked")
            if verdict.reason is not None:
                reason = f"step {verdict.first + 1}: {verdict.reason}"
                return question.abstain(position, reason, kind="failed" if verdict.failed else "abstained")
            assert verdict.score is not None
            scores[verdict.first] = verdict.score
        values = [scores[i] for i in sorted(scores)]
        match self._section.aggregate:
            case "min":
                return question.score(position, min(values))
            case "mean":
                return question.score(position, math.fsum(values) / len(values))
            case "last":
                return question.score(position, values[-1])
        outside = [value for value in values if not 0.0 <= value <= 1.0]
        if outside:
            raise JudgeError(
                f"{self._field}.aggregate is product and a step's score is {outside[0]:g}; a product takes "
                f"probabilities in [0, 1]: choose min or mean"
            )
        return question.score(position, math.prod(values))
