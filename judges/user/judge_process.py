"""The parent's side of a `python` judge. What the user's code does, it does in a process that can be killed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from judges.calling import Caller
from judges.hosting import Hosting
from judges.isolation.failures import kind_of
from judges.isolation.memory import limit_bytes
from judges.isolation.process import Child
from judges.protocol import Limits, Question, StopJudging, count
from judges.spec import JudgeSpec
from judges.user.service import FIELDS
from online_dpo.errors import JudgeError
from online_dpo.types import Verdict

START_TIMEOUT_S = 600.0
"""How long the code may take to be imported and its class to be constructed; `timeout_s` where that is longer."""


def build(spec: JudgeSpec, inner: Mapping[str, Caller], hosting: Hosting) -> UserJudge:
    """Start the code that a spec names.

    Raises:
        JudgeError: it does not import, does not fit, or does not start.
    """
    return UserJudge(spec, threads=hosting.threads)


class UserJudge:
    """A judge of the user's in a child process. The process keeps its state from call to call, until it dies."""

    def __init__(self, spec: JudgeSpec, *, threads: int | None = None) -> None:
        """Start the process and build the judge in it.

        Args:
            spec: of the judge.
            threads: of torch, where the code imports it.

        Raises:
            JudgeError: the code does not import, does not fit, or does not start.
        """
        section, self._label = spec.section, spec.label
        self.child = Child(
            "judges.user.service:JudgeService",
            {
                "target": section.target,
                "source": spec.source,
                "args": section.args,
                "field": spec.field,
                "both_orders": section.both_orders,
                "threads": threads,
            },
            start_timeout_s=max(START_TIMEOUT_S, section.timeout_s),
            memory_limit_bytes=limit_bytes(section.memory_limit_gb),
            memory_setting=f"{spec.field}.memory_limit_gb",
        )
        try:
            about = self.child.start()
        except JudgeError:
            raise
        except Exception as error:
            raise self._cannot_start(error) from error
        self.limits = Limits(**{**about, "own_timeout": True})
        # One that repeats its own calls gets, for each question, the time of all the calls that a host would make.
        self._timeout_s, self._question_timeout_s = section.timeout_s, 0.0
        if self.limits.own_retries:
            num_calls = (1 + section.retries) * (2 if section.both_orders else 1)
            self._timeout_s, self._question_timeout_s = 0.0, num_calls * section.timeout_s

    async def ready(self) -> None:
        """Put another process in the place of one that died; the time that takes is no part of a call's."""
        try:
            await self.child.ready()
        except JudgeError:
            raise
        except Exception as error:
            raise self._cannot_start(error) from error

    async def judge(self, questions: Sequence[Question]) -> list[list[Verdict]]:
        """As `Judge.judge`.

        Raises:
            TimeoutError, RaisedInChild, ProcessEnded, Interrupted: as `Child.call`.
        """
        timeout_s = self._timeout_s + self._question_timeout_s * len(questions)
        try:
            said = await self.child.call("judge", list(questions), timeout_s=timeout_s)
        except TimeoutError:
            raise TimeoutError(f"no answer within {timeout_s:g} s") from None
        for event, amount in said["counts"].items():
            count(event, amount)
        if "stopped" in said:
            raise StopJudging(said["stopped"])
        return [
            [Verdict(prompt_id=question.prompt_id, **dict(zip(FIELDS, row, strict=True))) for row in rows]
            for question, rows in zip(questions, said["verdicts"], strict=True)
        ]

    def _cannot_start(self, error: Exception) -> JudgeError:
        return JudgeError(f"{self._label} does not start: {kind_of(error)}: {error}; run its code by itself to see why")
