"""How one judge is called: batches, concurrency, timeouts, retries. For a host's judge and for those inside another.

Whatever goes wrong inside a judge ends as a counted abstention, never as a label and never as a dead host.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_attempt, wait_exponential

from judges.protocol import (
    Judge,
    Limits,
    Question,
    StopJudging,
    check_verdicts,
    collect_counts,
    count,
    limits_of,
    note_latency,
)
from online_dpo.config.judges.hosted import HostedJudge
from online_dpo.errors import JudgeError
from online_dpo.types import FAILURE, STOPPED, Verdict

log = logging.getLogger(__name__)

LATENCIES_KEPT = 10_000
Outcome = list[Verdict] | Exception
Sleep = Callable[[float], Awaitable[None]]


class Caller:
    """One judge and the rules by which it is called. All methods run on one event loop.

    A judge made of others is called once, without limits: those inside it have callers of their own.
    """

    def __init__(
        self, judge: Judge, section: Any, *, label: str, inner: tuple[Caller, ...] = (), sleep: Sleep = asyncio.sleep
    ) -> None:
        """Calls nothing yet.

        Args:
            judge: whom to ask.
            section: its part of the config.
            label: the judge in messages.
            inner: those that it asks in turn.
            sleep: waits between retries, in seconds.
        """
        self.judge, self.label, self.inner = judge, label, inner
        self.trial_timeout_s: float = section.timeout_s
        self.latencies_s: deque[float] = deque(maxlen=LATENCIES_KEPT)  # of the last calls that were answered
        self._sleep = sleep
        self._rules = section if isinstance(section, HostedJudge) else None
        self._limits = limits = limits_of(judge) if self._rules is not None else Limits()
        if self._rules is not None:
            calls = min(self._rules.concurrency, limits.calls_in_flight or self._rules.concurrency)
            self._slots = asyncio.Semaphore(calls)
            self._batch_size = min(self._rules.batch_size, limits.questions_per_call or self._rules.batch_size)

    def leaves(self) -> Iterator[Caller]:
        """Those that answer by themselves: this one, or those inside it."""
        if self._rules is not None:
            yield self
        for inner in self.inner:
            yield from inner.leaves()

    def batches(self, questions: Sequence[Question]) -> list[Sequence[Question]]:
        """The questions as the judge gets them, call by call."""
        if self._rules is None:
            return [questions] if questions else []
        return [questions[i : i + self._batch_size] for i in range(0, len(questions), self._batch_size)]

    async def ask(self, questions: Sequence[Question]) -> list[list[Verdict]]:
        """All questions, in order; for one that failed an abstention per completion that begins with `failed: `.

        For one that was not asked because the judge stopped it begins with `stopped: `; an outer judge hands that on
        for the whole question.
        """
        answers = await asyncio.gather(*(self.ask_batch(batch) for batch in self.batches(questions)))
        return [verdicts for answer in answers for verdicts in answer]

    async def ask_batch(self, batch: Sequence[Question]) -> list[list[Verdict]]:
        """As `ask`, for one of `batches`. A batch that keeps failing is asked question by question, once."""
        return [
            _failure(question, outcome) if isinstance(outcome, Exception) else outcome
            for question, outcome in zip(batch, await self._outcomes(batch), strict=True)
        ]

    async def _outcomes(self, batch: Sequence[Question]) -> list[Outcome]:
        try:
            return list(await self._ask_with_retries(batch))
        except Exception as error:
            if len(batch) == 1 or isinstance(error, StopJudging):
                return [error] * len(batch)
            log.warning("%s: a batch of %d failed, asking one by one: %s", self.label, len(batch), error)
        return list(await asyncio.gather(*(self._ask_alone(question) for question in batch)))

    async def _ask_alone(self, question: Question) -> Outcome:
        try:
            return (await self._ask([question]))[0]
        except Exception as error:
            return error

    async def _ask_with_retries(self, batch: Sequence[Question]) -> list[list[Verdict]]:
        if self._rules is None:
            return await self._ask(batch)

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
        return await retrying(self._ask, batch)

    async def _ask(self, batch: Sequence[Question]) -> list[list[Verdict]]:
        """One call, within its slot and its time.

        A blocking judge's thread cannot be killed: after a timeout it runs on beside the next call, unobserved.
        """
        if self._rules is None:
            return check_verdicts(batch, await self.judge.judge(batch))
        timeout_s = None if self._limits.own_retries else self._rules.timeout_s
        async with self._slots:
            count("num_judge_calls")
            limit, started = asyncio.timeout(timeout_s), time.perf_counter()
            try:
                async with limit:
                    with collect_counts() as own:  # outside of it this call's counts are those of the shard
                        verdicts = check_verdicts(batch, await self.judge.judge(batch))
            except TimeoutError:
                if limit.expired():
                    count("num_judge_timeouts")
                    raise TimeoutError(f"no answer within {timeout_s:g} s") from None
                raise
            except StopJudging:
                for event, amount in own.items():  # some of it may have been paid for
                    count(event, amount)
                raise
            except SystemExit as error:  # would end the host
                raise RuntimeError(f"called sys.exit({error.code})") from error
            except asyncio.CancelledError as error:
                task = asyncio.current_task()
                if task is not None and task.cancelling():
                    raise  # somebody cancelled the host's task, not the judge its own
                raise RuntimeError("cancelled its own call") from error
        seconds = time.perf_counter() - started
        self.latencies_s.append(seconds)
        note_latency(self.label, seconds)
        for event, amount in own.items():
            count(event, amount)
        return verdicts


def _is_worth_a_retry(error: BaseException) -> bool:
    """A broken contract is a bug of the judge's; asking again costs much and mends little."""
    return isinstance(error, Exception) and not isinstance(error, JudgeError)


def _failure(question: Question, error: Exception) -> list[Verdict]:
    message = " ".join(str(error).split())
    message = message if len(message) <= 200 else f"{message[:197]}..."
    stopped = isinstance(error, StopJudging)
    reason = f"{STOPPED}{error}" if stopped else f"{FAILURE}{type(error).__name__}: {message}"
    return [question.abstain(i, reason) for i in range(len(question.completions))]
