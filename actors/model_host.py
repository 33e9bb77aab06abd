"""What hosts of judges and of writers share: engines that give their memory away, threads, and an actor's process."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Mapping
from typing import Any

from actors.heartbeat import beat, here
from judges.calling import Sleep
from judges.chat import Chat, ChatEngineRequest
from judges.hosting import Hosting, Scorer, ScorerRequest, Sleeper


class ModelHost:
    """A place where models are asked. All methods run on one event loop."""

    def __init__(
        self,
        *,
        threads: int | None = None,
        counted: Mapping[str, float] | None = None,
        sleep: Sleep = asyncio.sleep,
        sleeps: bool = False,
    ) -> None:
        """Nothing is loaded yet: the first use does that, where its error can be reported.

        Args:
            threads: of torch, where a model uses it; None = as the process has it.
            counted: sums of the counters in the run so far; budgets go on from there.
            sleep: waits between retries, in seconds.
            sleeps: models on a GPU give its memory away while the learner works.
        """
        self._threads, self._counted, self._sleep, self._sleeps = threads, counted or {}, sleep, sleeps
        self._sleepers: list[Sleeper] = []
        self._is_asleep = False

    async def sleep(self) -> None:
        """Give the GPU's memory away, as far as models here can; the next shard wakes them. Nothing may be asked."""
        if self._sleeps:
            self._is_asleep = True
            for sleeper in self._sleepers:
                sleeper.sleep()

    def _wake(self) -> None:
        if self._is_asleep:
            for sleeper in self._sleepers:
                sleeper.wake()
            self._is_asleep = False

    def _hosting(self) -> Hosting:
        """For the builder of a judge or a writer."""
        return Hosting(
            engine=self._start_chat_engine,
            scorer=self._start_scorer,
            counted=self._counted,
            threads=self._threads,
            can_sleep=self._sleepers.append,
        )

    def _limit_threads(self) -> None:
        """To be called when everything is built, since only that may import torch."""
        if self._threads is not None and "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(self._threads)

    def _start_chat_engine(self, request: ChatEngineRequest) -> Chat:
        from actors.chat_engine import VllmChat  # vllm

        chat = VllmChat(request, sleeps=self._sleeps)
        self._sleepers.append(chat)
        return chat

    def _start_scorer(self, request: ScorerRequest) -> Scorer:
        from actors.scoring_engine import VllmScorer  # vllm

        return VllmScorer(request, sleeps=self._sleeps)  # its reward model says that it can sleep


class InActor:
    """Mixed into a host that is an actor: it shows that it lives, and says where."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        beat(lambda: int(time.monotonic()))  # calls have deadlines of their own; the process must live

    async def ready(self) -> tuple[int, str]:
        """Process id and node."""
        return here()
