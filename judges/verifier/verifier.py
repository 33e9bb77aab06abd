"""Outcome rewards: is the answer that a completion ends with the right one? 1 = yes, 0 = no.

The comparisons run in a child process, one completion at a time: a pattern of the user's or an expression that takes
too long costs only its own verdict.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from judges.calling import Caller
from judges.hosting import Hosting
from judges.isolation.failures import kind_of
from judges.isolation.memory import limit_bytes
from judges.isolation.process import Child
from judges.isolation.queueing import FAILURES, OneByOne
from judges.protocol import Limits, Question, count
from judges.spec import JudgeSpec
from online_dpo.config.judges.hosted import VerifierJudge
from online_dpo.errors import JudgeError
from online_dpo.types import Verdict

TIMEOUT_S = 10.0
"""How long one comparison may take; `timeout_s` where that is shorter. It usually takes some milliseconds."""

START_TIMEOUT_S = 120.0


def build(spec: JudgeSpec, inner: Mapping[str, Caller], hosting: Hosting) -> Verifier:
    """Build the judge that a spec describes."""
    return Verifier(spec.section, field=spec.field)


class Verifier:
    """Compares answers with a column of the prompts' source. Abstains where it is empty, fails where it is missing."""

    limits = Limits(calls_in_flight=1)  # the process computes one comparison at a time

    def __init__(self, section: VerifierJudge, *, field: str) -> None:
        self._section, self._field = section, field
        rules = section.model_dump(include={"method", "pattern", "reference_pattern", "tolerance"})
        self._work = OneByOne(
            Child(
                "judges.verifier.comparison:Comparison",
                {**rules, "field": f"{field}.answer is {section.answer}, which"},
                start_timeout_s=START_TIMEOUT_S,
                memory_limit_bytes=limit_bytes(section.memory_limit_gb),
                memory_setting=f"{field}.memory_limit_gb",
            ),
            timeout_s=min(TIMEOUT_S, section.timeout_s),
        )

    async def ready(self) -> None:
        """Start the process, or another one where it died; the time that takes is no part of a call's."""
        await self._work.child.ready()

    async def judge(self, questions: Sequence[Question]) -> list[list[Verdict]]:
        """As `Judge.judge`. A comparison that takes too long or too much memory is a failure of its completion."""
        return [await self._judge_one(question) for question in questions]

    async def _judge_one(self, question: Question) -> list[Verdict]:
        reference = self._reference(question)
        try:
            said = await self._work.ask("compare_all", reference, question.completions)
        except FAILURES:  # one of them is to blame
            said = [await self._compare(reference, text) for text in question.completions]
        if "no reference" in said:
            reason = f"no {self._section.method} answer in {self._section.answer} ({reference[:60]!r})"
            return question.abstain_from_all(reason)
        count("num_unreadable_answers", said.count("unreadable"))
        return [self._verdict(question, i, outcome) for i, outcome in enumerate(said)]

    async def _compare(self, reference: str, text: str) -> str | Exception:
        try:
            return str(await self._work.ask("compare", reference, text))
        except FAILURES as error:
            return error

    def _verdict(self, question: Question, position: int, outcome: str | Exception) -> Verdict:
        if isinstance(outcome, Exception):
            return question.abstain(position, f"{kind_of(outcome)}: {outcome}", kind="failed")
        if outcome == "unreadable" and self._section.unreadable == "abstain":
            return question.abstain(position, "no answer found in the completion")
        return question.score(position, float(outcome == "right"))

    def _reference(self, question: Question) -> str:
        if self._section.answer not in question.metadata:
            known = ", ".join(question.metadata) or "none"
            raise JudgeError(
                f"{self._field}.answer is {self._section.answer}, and prompt {question.prompt_id} has no such column "
                f"(it has: {known}); name the column of the prompt source that holds the right answer"
            )
        value: Any = question.metadata[self._section.answer]
        return "" if value is None else str(value)
