"""Hosts any judge. A plain class; the launcher makes a Ray actor of it, `online-dpo judge` uses it as it is."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from actors.heartbeat import beat, here
from judges.calling import Caller, Measurements, Sleep
from judges.chat import Chat, ChatEngineRequest
from judges.hosting import Hosting, Scorer, ScorerRequest, Sleeper
from judges.protocol import Question, collect_counts
from judges.registry import build_caller
from judges.spec import JudgeSpec
from judges.trial import try_judges
from online_dpo.config.pairing import PairingSection
from online_dpo.errors import JudgeError
from online_dpo.pairing.answers import for_judges
from online_dpo.pairing.opinions import scores_nothing
from online_dpo.types import Completion, Judged, Shard, Verdict, group_by_prompt


class JudgeHost:
    """One judge, called by the rules of its config. All methods run on one event loop."""

    def __init__(
        self,
        spec: JudgeSpec,
        *,
        threads: int | None = None,
        counted: Mapping[str, float] | None = None,
        sleep: Sleep = asyncio.sleep,
        sleeps: bool = False,
    ) -> None:
        """Nothing is loaded yet: `try_it` or the first shard does that, where its error can be reported.

        Args:
            spec: the judge and its hosting numbers.
            threads: of torch, where the judge uses it; None = as the process has it.
            counted: sums of its counters in the run so far; budgets go on from there.
            sleep: waits between retries, in seconds.
            sleeps: models on a GPU give its memory away while the learner works.
        """
        self._spec = spec
        self._threads = threads
        self._counted = counted or {}
        self._sleep = sleep
        self._sleeps = sleeps
        self._sleepers: list[Sleeper] = []
        self._is_asleep = False
        self._caller: Caller | None = None

    async def try_it(
        self, chat: bool, metadata: Mapping[str, Any] | None = None, rules: PairingSection | None = None
    ) -> list[Verdict]:
        """Build the judge and try it on two canned completions.

        Args:
            chat: whether the run's prompts are chat messages.
            metadata: that of the run's first prompt.
            rules: of the training judge; where they read scores, it must give some.

        Returns:
            What it said about the two.

        Raises:
            JudgeError: it cannot be built, or does not keep its contract.
            ModelError: its model's folder is missing or incomplete.
        """
        said = await try_judges(self._ready(), chat=chat, metadata=metadata, rules=rules)
        view = self._spec.view
        if view is not None and isinstance(view.unclosed, float) and scores_nothing(said):
            raise JudgeError(
                f"{self._spec.field}.view.unclosed is {view.unclosed:g}, a score, and {self._spec.label} only compares "
                f"two answers: set it to abstain or worst"
            )
        return said

    async def judge_shard(self, shard: Shard, completions: Sequence[Completion], again: bool = False) -> Judged:
        """Judge all completions of a shard. Batches never cross shards, so a redone shard gets the same verdicts.

        Args:
            shard: the prompts.
            completions: of some or all of them.
            again: ask for another, independent answer, without caches and with other seeds.

        Returns:
            Verdicts about sample indices, in prompt order. A question whose call failed has an abstention for each
            completion; one that was not asked, because the judge stopped, has nothing. Counters of calls, retries,
            timeouts and failed questions, and what the judge counted itself.

        Raises:
            ValueError: a completion answers no prompt of the shard.
            JudgeError: the judge cannot be built.
        """
        caller = self._ready()
        if self._is_asleep:
            for sleeper in self._sleepers:
                sleeper.wake()
            self._is_asleep = False
        strangers = {c.prompt_id for c in completions} - {prompt.prompt_id for prompt in shard.prompts}
        if strangers:
            raise ValueError(f"shard {shard.index} has no prompt {sorted(strangers)[0]}, which a completion answers")
        seen, settled = for_judges(completions, self._spec.view)
        groups = group_by_prompt(seen)
        questions = [
            Question(
                prompt_id=prompt.prompt_id,
                prompt=prompt.content,
                completions=tuple(c.text for c in groups[prompt.prompt_id]),
                metadata=prompt.metadata,
                again=again,
            )
            for prompt in shard.prompts
            if prompt.prompt_id in groups
        ]
        counts = dict.fromkeys(("num_judge_calls", "num_judge_retries", "num_judge_timeouts", "num_judge_failures"), 0)
        measured = Measurements()
        with collect_counts() as found:
            answers = await caller.ask(questions, measured)
        counts |= found
        counts["num_judge_failures"] += sum(any(verdict.failed for verdict in answer) for answer in answers)
        said: dict[str, list[Verdict]] = {}
        stopped: str | None = None
        for question, answer in zip(questions, answers, strict=True):
            unasked = [str(verdict.reason) for verdict in answer if verdict.unasked]
            if unasked:
                stopped = stopped or unasked[0]
                settled.pop(question.prompt_id, None)  # all about a prompt is said at once, or nothing is
                continue
            samples = [c.sample_index for c in groups[question.prompt_id]]
            said[question.prompt_id] = [_rename(verdict, samples) for verdict in answer]
        if self._spec.view is not None and not again:
            counts["num_unclosed_completions"] = sum(map(len, settled.values()))
        return Judged(
            verdicts=tuple(
                verdict
                for prompt in shard.prompts
                for verdict in (*said.get(prompt.prompt_id, ()), *settled.get(prompt.prompt_id, ()))
            ),
            counters=counts,
            agreement=measured.agreement,
            stopped=stopped,
            latencies_s=measured.latencies_s,
        )

    async def sleep(self) -> None:
        """Give the GPU's memory away, as far as models here can; the next shard wakes them. Nothing may be judged."""
        if self._sleeps:
            self._is_asleep = True
            for sleeper in self._sleepers:
                sleeper.sleep()

    def _ready(self) -> Caller:
        # Built on the event loop's own thread: constructors of asynchronous clients expect a running loop.
        if self._caller is None:
            hosting = Hosting(
                engine=self._start_chat_engine,
                scorer=self._start_scorer,
                counted=self._counted,
                threads=self._threads,
                can_sleep=self._sleepers.append,
            )
            self._caller = build_caller(self._spec, hosting=hosting, sleep=self._sleep)
            if self._threads is not None and "torch" in sys.modules:
                sys.modules["torch"].set_num_threads(self._threads)
        return self._caller

    def _start_chat_engine(self, request: ChatEngineRequest) -> Chat:
        from actors.chat_engine import VllmChat  # vllm

        chat = VllmChat(request, sleeps=self._sleeps)
        self._sleepers.append(chat)
        return chat

    def _start_scorer(self, request: ScorerRequest) -> Scorer:
        from actors.scoring_engine import VllmScorer  # vllm

        return VllmScorer(request, sleeps=self._sleeps)  # its reward model says that it can sleep


class JudgeActor(JudgeHost):
    """A judge in an actor's process."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        beat(lambda: int(time.monotonic()))  # calls have deadlines of their own; the process must live

    async def ready(self) -> tuple[int, str]:
        """Process id and node."""
        return here()


def _rename(verdict: Verdict, samples: Sequence[int]) -> Verdict:
    """From positions in the question to sample indices."""
    second = None if verdict.second is None else samples[verdict.second]
    return replace(verdict, first=samples[verdict.first], second=second)
