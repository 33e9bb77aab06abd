"""Hosts any judge. A plain class; the launcher makes a Ray actor of it, `online-dpo judge` uses it as it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from actors.model_host import InActor, ModelHost
from judges.calling import Caller, Measurements
from judges.protocol import Question, collect_counts
from judges.registry import build_caller
from judges.spec import JudgeSpec
from judges.trial import try_judges
from online_dpo.config.pairing import PairingSection
from online_dpo.errors import JudgeError
from online_dpo.pairing.answers import for_judges
from online_dpo.pairing.opinions import scores_nothing
from online_dpo.types import Completion, Judged, Shard, Verdict, group_by_prompt


class JudgeHost(ModelHost):
    """One judge, called by the rules of its config."""

    def __init__(self, spec: JudgeSpec, **options: Any) -> None:
        """As `ModelHost`, with the judge and its hosting numbers."""
        super().__init__(**options)
        self._spec = spec
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
        self._wake()
        strangers = {c.prompt_id for c in completions} - {prompt.prompt_id for prompt in shard.prompts}
        if strangers:
            raise ValueError(f"shard {shard.index} has no prompt {sorted(strangers)[0]}, which a completion answers")
        seen, settled = for_judges(completions, self._spec.view)
        groups = group_by_prompt(seen)
        questions = _questions(shard, groups, again=again)
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

    def _ready(self) -> Caller:
        # Built on the event loop's own thread: constructors of asynchronous clients expect a running loop.
        if self._caller is None:
            self._caller = build_caller(self._spec, hosting=self._hosting(), sleep=self._sleep)
            self._limit_threads()
        return self._caller


class JudgeActor(InActor, JudgeHost):
    """A judge in an actor's process."""


def _questions(shard: Shard, groups: Mapping[str, Sequence[Completion]], *, again: bool) -> list[Question]:
    """One about each prompt that has completions, in prompt order."""
    return [
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


def _rename(verdict: Verdict, samples: Sequence[int]) -> Verdict:
    """From positions in the question to sample indices."""
    second = None if verdict.second is None else samples[verdict.second]
    return replace(verdict, first=samples[verdict.first], second=second)
