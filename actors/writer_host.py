"""Hosts a writer of candidates that asks a chat model. A plain class; the launcher makes a Ray actor of it."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from actors.heartbeat import beat, here
from judges.calling import Sleep
from judges.chat import Chat, ChatEngineRequest
from judges.hosting import Hosting, Sleeper
from judges.llm.building import build_chat
from judges.protocol import collect_counts
from judges.trial import ANSWERS, TEXT
from judges.writers.writer import TextWriter, WriterSpec
from online_dpo.errors import JudgeError
from online_dpo.types import Completion, Prompt, Shard
from online_dpo.written import Written

_OF_JUDGES, _OURS = "num_judge_", "num_"
"""How the counters of a chat model's client begin, and how those of a writer do."""


class WriterHost:
    """One writer. All methods run on one event loop."""

    def __init__(
        self,
        spec: WriterSpec,
        *,
        threads: int | None = None,
        counted: Mapping[str, float] | None = None,
        sleep: Sleep = asyncio.sleep,
        sleeps: bool = False,
    ) -> None:
        """Nothing is loaded yet: `try_it` or the first shard does that, where its error can be reported.

        Args:
            spec: the writer.
            threads: of torch, where an engine uses it; None = as the process has it.
            counted: sums of its counters in the run so far; budgets go on from there.
            sleep: waits between retries, in seconds.
            sleeps: an engine on a GPU gives its memory away while the learner works.
        """
        self._spec, self._threads, self._sleep, self._sleeps = spec, threads, sleep, sleeps
        self._counted = {_renamed(name, _OURS, _OF_JUDGES): value for name, value in (counted or {}).items()}
        self._sleepers: list[Sleeper] = []
        self._is_asleep = False
        self._writer: TextWriter | None = None

    async def try_it(self, chat: bool) -> None:
        """Have one canned prompt answered; it is not counted.

        Args:
            chat: whether the run's prompts are chat messages.

        Raises:
            JudgeError: the writer cannot be built, or gets no reply.
            ModelError: its model's folder is missing or incomplete.
        """
        asked: dict[str, Any] = {"messages": ({"role": "user", "content": TEXT},)} if chat else {"text": TEXT}
        prompt = Prompt(prompt_id="trial", token_ids=(), **asked)
        sample = Completion(
            prompt_id="trial", sample_index=0, token_ids=(), text=ANSWERS[1],
            finish_reason=None, sampler_logps=None, policy_version=None, seed=None,
        )  # fmt: skip
        written = await self._ready().write([prompt], [sample], 0)
        failed = [text for text in written.texts if text.outcome == "failed"]
        if written.stopped is not None or len(failed) == len(written.texts):
            why = written.stopped or failed[0].detail
            raise JudgeError(f"{self._spec.label} was tried on a canned prompt and gave no reply: {why}")

    async def write_shard(
        self, shard: Shard, prompt_ids: Sequence[str], samples: Sequence[Completion], round_index: int
    ) -> Written:
        """Have answers written to some prompts of a shard. Requests never cross shards, so a redone one is the same.

        Args:
            shard: the prompts.
            prompt_ids: those that are wanted.
            samples: of the policy.
            round_index: of the round.

        Raises:
            JudgeError: the writer cannot be built.
        """
        writer = self._ready()
        if self._is_asleep:
            for sleeper in self._sleepers:
                sleeper.wake()
            self._is_asleep = False
        wanted = set(prompt_ids)
        with collect_counts() as counts:
            written = await writer.write([p for p in shard.prompts if p.prompt_id in wanted], samples, round_index)
        counters = {_renamed(name, _OF_JUDGES, _OURS): value for name, value in sorted(counts.items())}
        return replace(written, counters=counters)

    async def sleep(self) -> None:
        """Give the GPU's memory away; the next shard takes it back. Nothing may be written."""
        if self._sleeps:
            self._is_asleep = True
            for sleeper in self._sleepers:
                sleeper.sleep()

    def _ready(self) -> TextWriter:
        # Built on the event loop's own thread: constructors of asynchronous clients expect a running loop.
        if self._writer is None:
            hosting = Hosting(engine=self._start_chat_engine, counted=self._counted, threads=self._threads)
            chat = build_chat(self._spec.section, self._spec.field, hosting=hosting, sleep=self._sleep)
            self._writer = TextWriter(self._spec, chat)
            if self._threads is not None and "torch" in sys.modules:
                sys.modules["torch"].set_num_threads(self._threads)
        return self._writer

    def _start_chat_engine(self, request: ChatEngineRequest) -> Chat:
        from actors.chat_engine import VllmChat  # vllm

        chat = VllmChat(request, sleeps=self._sleeps)
        self._sleepers.append(chat)
        return chat


class WriterActor(WriterHost):
    """A writer in an actor's process."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        beat(lambda: int(time.monotonic()))  # calls have deadlines of their own; the process must live

    async def ready(self) -> tuple[int, str]:
        """Process id and node."""
        return here()


def _renamed(name: str, before: str, after: str) -> str:
    return after + name.removeprefix(before) if name.startswith(before) else name
