"""How one judge is called: batches, concurrency, timeouts, retries. For a host's judge and for those inside another.

Whatever goes wrong inside a judge ends as a counted abstention, never as an opinion and never as a dead host.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, cast, runtime_checkable

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_attempt, wait_exponential

from judges.isolation.failures import Interrupted, kind_of
from judges.protocol import (
    Judge,
    Limits,
    Question,
    StopJudging,
    check_verdicts,
    collect_counts,
    count,
    limits_of,
)
from online_dpo.config.judges.hosted import HostedJudge
from online_dpo.errors import JudgeError
from online_dpo.member_agreement import MemberAgreement
from online_dpo.types import Verdict

log = logging.getLogger(__name__)

Sleep = Callable[[float], Awaitable[None]]


@dataclass(slots=True)
class Measurements:
    """What is measured while questions are asked, beside the verdicts. Filled in by the callers that it is given to."""

    latencies_s: dict[str, list[float]] = field(default_factory=dict)  # judge -> seconds of each answered call
    agreement: dict[str, MemberAgreement] = field(default_factory=dict)  # by the config field of each ensemble

    def add_latency(self, label: str, seconds: float) -> None:
        """A judge has answered a call after so many seconds."""
        self.latencies_s.setdefault(label, []).append(seconds)

    def add_agreement(self, place: str, found: MemberAgreement) -> None:
        """An ensemble has measured how far its members agree about a question; `place` is its field in the config."""
        self.agreement[place] = self.agreement.get(place, MemberAgreement()).plus(found)


class AsksOthers(Protocol):
    """A judge that is made of others, and hands `measured` on to their callers."""

    async def judge(
        self, questions: Sequence[Question], measured: Measurements | None = None
    ) -> Sequence[Sequence[Verdict]]:
        """As `Judge.judge`."""
        ...


@runtime_checkable
class Isolated(Protocol):
    """A judge that works in a child process."""

    async def ready(self) -> None:
        """Replace the process where it died; no call's time runs meanwhile."""
        ...


class Caller:
    """One judge and the rules by which it is called. All methods run on one event loop.

    A judge made of others is called once, without limits: those inside it have callers of their own.
    """

    def __init__(
        self,
        judge: Judge | AsksOthers,
        section: Any,
        *,
        label: str,
        inner: tuple[Caller, ...] = (),
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        """Calls nothing yet.

        Args:
            judge: whom to ask.
            section: its part of the config.
            label: the judge in messages.
            inner: the callers of the judges that it asks in turn.
            sleep: waits between retries, in seconds.
        """
        self.judge, self.label, self.inner = judge, label, inner
        self.trial_timeout_s: float = section.timeout_s
        self._sleep = sleep
        self._rules = section if isinstance(section, HostedJudge) else None
        self._limits = limits = limits_of(judge) if self._rules is not None else Limits()
        if self._rules is not None:
            self._num_slots = min(self._rules.concurrency, limits.calls_in_flight or self._rules.concurrency)
            self._slots, self._alone = asyncio.Semaphore(self._num_slots), asyncio.Lock()
            self._batch_size = min(self._rules.batch_size, limits.questions_per_call or self._rules.batch_size)

    def batches(self, questions: Sequence[Question]) -> list[Sequence[Question]]:
        """The questions as the judge gets them, call by call."""
        if self._rules is None:
            return [questions] if questions else []
        return [questions[i : i + self._batch_size] for i in range(0, len(questions), self._batch_size)]

    async def ask(self, questions: Sequence[Question], measured: Measurements | None = None) -> list[list[Verdict]]:
        """Ask everything.

        Args:
            questions: either all or none of them are asked again.
            measured: gets the seconds of calls and the agreement of members; None = they are not kept.

        Returns:
            The verdicts on each question, in order. Where a call failed, each completion of the question has an
            abstention of the kind "failed"; where the judge stopped before it was asked, of the kind "unasked", which
            a judge made of others hands on for the whole question.
        """
        answers = await asyncio.gather(*(self.ask_batch(batch, measured) for batch in self.batches(questions)))
        return [verdicts for answer in answers for verdicts in answer]

    async def ask_batch(self, batch: Sequence[Question], measured: Measurements | None = None) -> list[list[Verdict]]:
        """As `ask`, for one of `batches`. A batch that keeps failing is asked question by question, once."""
        return [
            _explain(question, outcome) if isinstance(outcome, Exception) else outcome
            for question, outcome in zip(batch, await self._outcomes(batch, measured), strict=True)
        ]

    async def _outcomes(
        self, batch: Sequence[Question], measured: Measurements | None
    ) -> list[list[Verdict] | Exception]:
        try:
            return list(await self._ask_with_retries(batch, measured))
        except Exception as error:
            if len(batch) == 1 or isinstance(error, StopJudging):
                return [error] * len(batch)
            log.warning("%s: a batch of %d failed, asking one by one: %s", self.label, len(batch), error)
        return list(await asyncio.gather(*(self._ask_alone(question, measured) for question in batch)))

    async def _ask_alone(self, question: Question, measured: Measurements | None) -> list[Verdict] | Exception:
        try:
            return (await self._ask([question], measured))[0]
        except Exception as error:
            return error

    async def _ask_with_retries(self, batch: Sequence[Question], measured: Measurements | None) -> list[list[Verdict]]:
        if self._rules is None:
            return await self._ask(batch, measured)

        def before_sleep(_: RetryCallState) -> None:
            count("num_judge_retries")

        retrying = AsyncRetrying(
            sleep=self._sleep,
            stop=stop_after_attempt(1 if self._limits.own_retries else 1 + self._rules.retries),
            wait=wait_exponential(multiplier=0.5, max=10.0),
            retry=retry_if_exception(_is_worth_a_retry),
            before_sleep=before_sleep,
            reraise=True,
        )
        return await retrying(self._ask, batch, measured)

    async def _ask(self, batch: Sequence[Question], measured: Measurements | None) -> list[list[Verdict]]:
        """One call; once more, with no other beside it, where its process died and it is not known of which call."""
        if self._rules is None:
            return check_verdicts(batch, await cast(AsksOthers, self.judge).judge(batch, measured))
        try:
            async with self._slots:
                return await self._call(batch, measured)
        except Interrupted:
            count("num_judge_retries")
            async with self._every_slot():
                return await self._call(batch, measured)

    @contextlib.asynccontextmanager
    async def _every_slot(self) -> AsyncIterator[None]:
        taken = 0
        async with self._alone:
            try:
                for _ in range(self._num_slots):
                    await self._slots.acquire()
                    taken += 1
                yield
            finally:
                for _ in range(taken):
                    self._slots.release()

    async def _call(self, batch: Sequence[Question], measured: Measurements | None) -> list[list[Verdict]]:
        """One call within its time."""
        assert self._rules is not None
        timeout_s = self._rules.timeout_s
        if isinstance(self.judge, Isolated):
            await self.judge.ready()
        count("num_judge_calls")
        limit, started = asyncio.timeout(timeout_s if self._limits.held_from_outside else None), time.perf_counter()
        try:
            async with limit:
                with collect_counts() as own:  # what it counts reaches the shard's counts only if it succeeds
                    verdicts = check_verdicts(batch, await self.judge.judge(batch))
        except TimeoutError:
            if limit.expired() or self._limits.own_timeout:
                count("num_judge_timeouts")
            if limit.expired():
                raise TimeoutError(f"no answer within {timeout_s:g} s") from None
            raise
        except StopJudging:
            _count_all(own)  # some of it may have been paid for
            raise
        except SystemExit as error:  # would end the host
            raise RuntimeError(f"called sys.exit({error.code})") from error
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise  # somebody cancelled the host's task, not the judge its own
            raise RuntimeError("cancelled its own call") from error
        if measured is not None:
            measured.add_latency(self.label, time.perf_counter() - started)
        _count_all(own)
        return verdicts


def _count_all(counts: Mapping[str, int]) -> None:
    for event, amount in counts.items():
        count(event, amount)


def _is_worth_a_retry(error: BaseException) -> bool:
    """A broken contract is a bug in the judge, which asking again would not remove."""
    return isinstance(error, Exception) and not isinstance(error, JudgeError)


def _explain(question: Question, error: Exception) -> list[Verdict]:
    """The abstentions that stand for a question without an answer."""
    if isinstance(error, StopJudging):
        return question.abstain_from_all(str(error), kind="unasked")
    message = " ".join(str(error).split())
    message = message if len(message) <= 200 else f"{message[:197]}..."
    return question.abstain_from_all(f"{kind_of(error)}: {message}", kind="failed")
