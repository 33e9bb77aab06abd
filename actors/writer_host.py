"""Hosts a writer of candidates that asks a chat model. A plain class; the launcher makes a Ray actor of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from actors.model_host import InActor, ModelHost
from judges.llm.building import build_chat
from judges.protocol import collect_counts
from judges.trial import ANSWERS, TEXT
from judges.writers.writer import TextWriter, WriterSpec
from online_dpo.errors import JudgeError
from online_dpo.types import Completion, Prompt, Shard
from online_dpo.written import Written

_OF_JUDGES, _OURS = "num_judge_", "num_"
"""How the counters of a chat model's client begin, and how those of a writer do."""


class WriterHost(ModelHost):
    """One writer."""

    def __init__(self, spec: WriterSpec, *, counted: Mapping[str, float] | None = None, **options: Any) -> None:
        """As `ModelHost`, with the writer and the sums of its counters."""
        super().__init__(
            counted={_renamed(name, _OURS, _OF_JUDGES): value for name, value in (counted or {}).items()}, **options
        )
        self._spec = spec
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
        self._wake()
        wanted = set(prompt_ids)
        with collect_counts() as counts:
            written = await writer.write([p for p in shard.prompts if p.prompt_id in wanted], samples, round_index)
        counters = {_renamed(name, _OF_JUDGES, _OURS): value for name, value in sorted(counts.items())}
        return replace(written, counters=counters)

    def _ready(self) -> TextWriter:
        # Built on the event loop's own thread: constructors of asynchronous clients expect a running loop.
        if self._writer is None:
            chat = build_chat(self._spec.section, self._spec.field, hosting=self._hosting(), sleep=self._sleep)
            self._writer = TextWriter(self._spec, chat)
            self._limit_threads()
        return self._writer


class WriterActor(InActor, WriterHost):
    """A writer in an actor's process."""


def _renamed(name: str, before: str, after: str) -> str:
    return after + name.removeprefix(before) if name.startswith(before) else name
