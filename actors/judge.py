"""Hosts any judge: batching, concurrency, timeouts, retries. A plain class; the launcher makes a Ray actor of it.

Whatever goes wrong inside a judge ends as a counted abstention, never as a label and never as a dead host.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_attempt, wait_exponential

from judges.protocol import Judge, Question, check_verdicts, collect_counts, limits_of
from judges.registry import JudgeSpec, build
from judges.trial import try_judge
from online_dpo.errors import JudgeError
from online_dpo.types import FAILURE, Completion, Judged, Shard, Verdict, group_by_prompt

log = logging.getLogger(__name__)

Outcome = list[Verdict] | Exception
Sleep = Callable[[float], Awaitable[None]]


class JudgeHost:
    """One judge and the rules by which it is called. All methods run on one event loop."""

    def __init__(self, spec: JudgeSpec, *, threads: int | None = None, sleep: Sleep = asyncio.sleep) -> None:
        """Nothing is loaded yet: `try_it` or the first shard does that, where its error can be reported.

        Args:
            spec: the judge and its hosting numbers.
            threads: of torch, where the judge uses it; None = as the process has it.
            sleep: waits between retries, in seconds.
        """
        self._spec = spec
        self._threads = threads
        self._sleep = sleep
        self._judge: Judge | None = None
        self._slots = asyncio.Semaphore(spec.section.concurrency)  # replaced once the judge's own limits are known
        self._batch_size = spec.section.batch_size

    async def try_it(self, chat: bool, metadata: Mapping[str, Any] | None = None) -> None:
        """Build the judge and try it on two canned completions.

        Args:
            chat: whether the run's prompts are chat messages.
            metadata: that of the run's first prompt.

        Raises:
            JudgeError: it cannot be built, or does not keep its contract.
            ModelError: its model's folder is missing or incomplete.
        """
        await try_judge(
            self._ready(),
            field=self._spec.label,
            chat=chat,
            metadata=metadata,
            timeout_s=self._spec.section.timeout_s,
        )

    async def judge_shard(self, shard: Shard, completions: Sequence[Completion]) -> Judged:
        """Judge all completions of a shard. Batches never cross shards, so a redone shard gets the same verdicts.

        Returns:
            Verdicts about sample indices, in prompt order; for a question that failed one abstention per completion,
            whose reason begins with `failed: `. Counters of calls, retries, timeouts and failed questions, and what
            the judge counted itself.

        Raises:
            ValueError: a completion answers no prompt of the shard.
            JudgeError: the judge cannot be built.
        """
        self._ready()
        groups = group_by_prompt(completions)
        strangers = groups.keys() - {prompt.prompt_id for prompt in shard.prompts}
        if strangers:
            raise ValueError(f"shard {shard.index} has no prompt {sorted(strangers)[0]}, which a completion answers")
        questions = [
            Question(
                prompt_id=prompt.prompt_id,
                prompt=prompt.content,
                completions=tuple(c.text for c in groups[prompt.prompt_id]),
                metadata=prompt.metadata,
            )
            for prompt in shard.prompts
            if prompt.prompt_id in groups
        ]
        counts = Counter(num_judge_calls=0, num_judge_retries=0, num_judge_timeouts=0, num_judge_failures=0)
        batches = [questions[i : i + self._batch_size] for i in range(0, len(questions), self._batch_size)]
        outcomes = await asyncio.gather(*(self._judge_batch(batch, counts) for batch in batches))
        verdicts: list[Verdict] = []
        for question, outcome in zip(questions, (o for batch in outcomes for o in batch), strict=True):
            samples = [c.sample_index for c in groups[question.prompt_id]]
            if isinstance(outcome, Exception):
                counts["num_judge_failures"] += 1
                outcome = _failure(question, outcome)
            verdicts.extend(_rename(verdict, samples) for verdict in outcome)
        return Judged(verdicts=tuple(verdicts), counters=dict(counts))

    def _ready(self) -> Judge:
        # Built on the event loop's own thread: constructors of asynchronous clients expect a running loop.
        if self._judge is None:
            self._judge = build(self._spec)
            limits = limits_of(self._judge)
            section = self._spec.section
            self._slots = asyncio.Semaphore(min(section.concurrency, limits.calls_in_flight or section.concurrency))
            self._batch_size = min(section.batch_size, limits.questions_per_call or section.batch_size)
            if self._threads is not None and "torch" in sys.modules:
                sys.modules["torch"].set_num_threads(self._threads)
        return self._judge

    async def _judge_batch(self, batch: Sequence[Question], counts: Counter[str]) -> list[Outcome]:
        """One outcome per question. A batch that keeps failing is asked question by question, once."""
        try:
            return list(await self._ask_with_retries(batch, counts))
        except Exception as error:
            if len(batch) == 1:
                return [error]
            log.warning("%s: a batch of %d failed, asking one by one: %s", self._spec.label, len(batch), error)
        return list(await asyncio.gather(*(self._ask_alone(question, counts) for question in batch)))

    async def _ask_alone(self, question: Question, counts: Counter[str]) -> Outcome:
        try:
            return (await self._ask([question], counts))[0]
        except Exception as error:
            return error

    async def _ask_with_retries(self, batch: Sequence[Question], counts: Counter[str]) -> list[list[Verdict]]:
        def before_sleep(_: RetryCallState) -> None:
            counts["num_judge_retries"] += 1

        retrying = AsyncRetrying(
            sleep=self._sleep,
            stop=stop_after_attempt(1 + self._spec.section.retries),
            wait=wait_exponential(multiplier=0.5, max=10.0),
            retry=retry_if_exception(_is_worth_a_retry),
            before_sleep=before_sleep,
            reraise=True,
        )
        return await retrying(self._ask, batch, counts)

    async def _ask(self, batch: Sequence[Question], counts: Counter[str]) -> list[list[Verdict]]:
        """One call, within its slot and its time.

        A blocking judge's thread cannot be killed: after a timeout it runs on beside the next call, unobserved.
        """
        async with self._slots:
            counts["num_judge_calls"] += 1
            limit = asyncio.timeout(self._spec.section.timeout_s)
            with collect_counts() as own:
                try:
                    async with limit:
                        verdicts = check_verdicts(batch, await self._ready().judge(batch))
                except TimeoutError:
                    if limit.expired():
                        counts["num_judge_timeouts"] += 1
                        raise TimeoutError(f"no answer within {self._spec.section.timeout_s:g} s") from None
                    raise
                except SystemExit as error:  # would end the host
                    raise RuntimeError(f"called sys.exit({error.code})") from error
                except asyncio.CancelledError as error:
                    task = asyncio.current_task()
                    if task is not None and task.cancelling():
                        raise  # somebody cancelled the host's task, not the judge its own
                    raise RuntimeError("cancelled its own call") from error
        counts.update(own)
        return verdicts


def _is_worth_a_retry(error: BaseException) -> bool:
    """A broken contract is a bug of the judge's; asking again costs much and mends little."""
    return isinstance(error, Exception) and not isinstance(error, JudgeError)


def _failure(question: Question, error: Exception) -> list[Verdict]:
    message = " ".join(str(error).split())
    message = message if len(message) <= 200 else f"{message[:197]}..."
    reason = f"{FAILURE}{type(error).__name__}: {message}"
    return [question.abstain(i, reason) for i in range(len(question.completions))]


def _rename(verdict: Verdict, samples: Sequence[int]) -> Verdict:
    """From positions in the question to sample indices."""
    second = None if verdict.second is None else samples[verdict.second]
    return Verdict(
        prompt_id=verdict.prompt_id,
        first=samples[verdict.first],
        second=second,
        score=verdict.score,
        probability=verdict.probability,
        reason=verdict.reason,
    )
