"""Shards of prompts -> committed rollouts and verdicts. Shards are judged while later ones are still sampled.

A rollout is one prompt's samples. One collecting loop serves the rounds, the evaluations and the annotator, whose
completions are there before it begins.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from online_dpo.loop.calls import Call, Calls
from online_dpo.loop.candidates.own_revisions import SampleFrom, Take
from online_dpo.loop.candidates.writing import Writing
from online_dpo.loop.stages import Event, Task
from online_dpo.loop.verdicts import Asking, Said
from online_dpo.loop.weight_sync import Policy, Pusher, check_versions
from online_dpo.store.round_store import RoundStore
from online_dpo.store.shards import Asked, ShardCommits
from online_dpo.types import Completion, Prompt, Row, Sampled, SamplingPlan, Shard, TokenLogpRows


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """All completions of one sampling with all that was said about them, in prompt order."""

    completions: tuple[Completion, ...]
    said: Mapping[str, Said]  # by judge


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidates:
    """Those of one sampling."""

    unjudged: Collection[str]  # writers whose answers no judge is shown
    writing: Callable[[Asking, SampleFrom], Writing]  # makes what asks the writers


def make_shards(prompts: Sequence[Prompt], shard_prompts: int) -> list[Shard]:
    """The prompts in their order, `shard_prompts` to a shard; the last one may have fewer."""
    starts = range(0, len(prompts), shard_prompts)
    return [Shard(index=i, prompts=tuple(prompts[start : start + shard_prompts])) for i, start in enumerate(starts)]


class Rollouts:
    """One sampling of prompts in one round: what of it is committed, and what is still to be sampled and judged."""

    def __init__(self, store: RoundStore, prompts: Sequence[Prompt], shard_prompts: int, *, base: str = "") -> None:
        """Look at what is committed.

        Args:
            store: of the round.
            prompts: that are sampled.
            shard_prompts: prompts of a shard.
            base: prefix of the commits' names inside the round, such as `evaluation/heldout/`.
        """
        self.commits = ShardCommits(store, base)
        self.prompts = prompts
        self.shards = make_shards(prompts, shard_prompts)

    @property
    def missing(self) -> list[Shard]:
        """Shards that are not sampled yet."""
        return [shard for shard in self.shards if not self.commits.has_completions(shard.index)]

    def work(self, judges: Sequence[str], num_samples: int) -> dict[str, int]:
        """What is to be done in all, and what is left: for the event that announces it.

        Args:
            judges: that are asked about every prompt.
            num_samples: completions of a prompt.
        """
        has = self.commits.has_verdicts
        unjudged = [s for judge in judges for s in self.shards if not has(s.index, Asked(judge=judge))]
        return {
            "num_completions": num_samples * len(self.prompts),
            "num_to_sample": num_samples * sum(len(shard.prompts) for shard in self.missing),
            "num_to_judge": sum(len(shard.prompts) for shard in unjudged),
        }

    def completions(self) -> tuple[Completion, ...]:
        """Of all shards, once all are sampled; read back from the store."""
        return tuple(c for shard in self.shards for c in self.commits.completions(shard.index))


def judge_given(
    calls: Calls, rollouts: Rollouts, completions: Mapping[str, Sequence[Completion]], judge: str
) -> Generator[Event, None, Said]:
    """Have completions judged that are there already; as `ask_given`, and wait for it.

    Returns (as the generator's value): `Said`.

    Raises:
        JudgingStopped, AnswersMissing: as `Sampling.finish`.
    """
    asking = yield from ask_given(calls, rollouts, completions, [judge])
    yield from asking.finish()
    return asking.said(rollouts.shards)[judge]


def ask_given(
    calls: Calls, rollouts: Rollouts, completions: Mapping[str, Sequence[Completion]], judges: Sequence[str]
) -> Generator[Event, None, Asking]:
    """Ask judges about completions that are there already, and do not wait.

    Args:
        calls: of the process.
        rollouts: the prompts; nothing of them is sampled.
        completions: prompt id -> what the judges are shown of it, in this order.
        judges: their names.

    Returns (as the generator's value): what is under way.
    """
    asking = Asking(calls, rollouts.commits, judges)
    for shard in rollouts.shards:
        yield from asking.ask(shard, [c for prompt in shard.prompts for c in completions[prompt.prompt_id]])
    return asking


class Sampling:
    """Samples and judges what is not committed yet; commits each shard and each judge's verdicts as they come.

    The first samples of every engine after a push are re-scored by the learner before they, or anything that the
    engine sampled after them, are committed: what a stale engine sampled is never kept.
    """

    def __init__(
        self,
        calls: Calls,
        rollouts: Rollouts,
        pusher: Pusher,
        policy: Policy,
        plan: SamplingPlan,
        *,
        judges: Sequence[str],
        again: Mapping[str, Collection[str]] | None = None,
        candidates: Candidates | None = None,
    ) -> None:
        """Nothing is begun yet.

        Args:
            calls: of the process: its generators, judges and learner.
            rollouts: what is sampled, and what of it is committed.
            pusher: has pushed `policy` where anything is missing.
            policy: that the generators hold.
            plan: how it is sampled.
            judges: that are asked about every completion.
            again: judge -> prompts that it is asked about a second time, where it had an opinion; what it then says is
                only compared.
            candidates: of further writers, which come before the judges see a shard; None = there are none.
        """
        self._calls, self._rollouts, self._plan = calls, rollouts, plan
        self._pusher, self._policy = pusher, policy
        unjudged = () if candidates is None else candidates.unjudged
        self._asking = Asking(calls, rollouts.commits, judges, again, unjudged)
        self._num_suspects = 0  # shards that the learner is re-scoring
        self._waiting: list[Callable[[], Iterator[Event]]] = []  # what follows once no engine is being checked
        self._writing = None if candidates is None else candidates.writing(self._asking, self._sample)

    def begin(self) -> Iterator[Event]:
        """Ask about the shards that are committed and not judged, and start those that are not sampled."""
        missing = self._rollouts.missing
        for shard in self._rollouts.shards:
            if shard not in missing:
                yield from self._ask(shard, self._rollouts.commits.samples(shard.index))
        for shard in missing:
            self._sample(shard, self._plan, partial(self._commit, shard))

    def finish(self) -> Generator[Event, None, Collected]:
        """Wait for all of it.

        Returns (as the generator's value): `Collected`.

        Raises:
            JudgingStopped: a judge can or may go on no more. All that was said until then is committed, and a
                continuation asks for the rest; what is being sampled meanwhile is not waited for.
            AnswersMissing: people have not answered all that they are asked, and the run is not to wait for them.
        """
        yield from self._asking.finish()
        return Collected(completions=self._rollouts.completions(), said=self._asking.said(self._rollouts.shards))

    def settle(self) -> Iterator[Event]:
        """Wait until nothing is under way. A judge that stopped is left to whoever asks for the rest."""
        yield from self._calls.serve(self._asking)

    def _add(self, task: Task, then: Callable[[Any], Iterator[Event]]) -> None:
        self._calls.add(task, Call(then=then, owner=self._asking))

    def _sample(self, shard: Shard, plan: SamplingPlan, then: Take) -> None:
        """Begin to sample prompts; `then` takes the samples once the engine that they are from is trusted."""
        task = self._calls.stages.start_sampling(shard, plan, self._policy.version)
        self._add(task, partial(self._on_sampled, shard, then))

    def _on_sampled(self, shard: Shard, then: Take, result: Sampled) -> Iterator[Event]:
        check_versions(self._policy.version, result.completions)
        if result.first_since_push:
            rows = rows_of(shard.prompts, self._pusher.chosen_for_rescoring(result.completions))
            task = self._calls.stages.start_rescoring(rows, self._policy.scored_under)
            self._add(task, partial(self._on_rescored, shard, then, result.completions))
            self._num_suspects += 1
        else:
            self._waiting.append(partial(then, result.completions))
            yield from self._release_waiting()

    def _on_rescored(
        self,
        shard: Shard,
        then: Take,
        sampled: Sequence[Completion],
        logps: Sequence[TokenLogpRows],
    ) -> Iterator[Event]:
        self._num_suspects -= 1
        # An event, not a part of any commit: which shard is the first after a push depends on where a run was resumed.
        yield self._asking.event("rescored", shard, **self._pusher.check_samples(sampled, logps))
        yield from then(sampled)
        yield from self._release_waiting()

    def _release_waiting(self) -> Iterator[Event]:
        # Which engine sampled a shard is not known here, so all wait while any engine is under suspicion.
        while self._waiting and not self._num_suspects:
            yield from self._waiting.pop(0)()

    def _commit(self, shard: Shard, samples: Sequence[Completion]) -> Iterator[Event]:
        samples = tuple(map(self._calls.measured, samples))
        self._rollouts.commits.put_completions(shard.index, samples)
        num_tokens, num_completions = sum(len(c.token_ids) for c in samples), len(samples)
        yield self._asking.event("shard_sampled", shard, num_tokens=num_tokens, num_completions=num_completions)
        yield from self._ask(shard, samples)

    def _ask(self, shard: Shard, samples: Sequence[Completion]) -> Iterator[Event]:
        """Ask the judges about a shard, once its candidates are there."""
        if self._writing is None:
            yield from self._asking.ask(shard, samples)
        elif not self._asking.is_stopped:
            yield from self._writing.complete(shard, samples, partial(self._ask_about_all, shard))

    def _ask_about_all(self, shard: Shard) -> Iterator[Event]:
        yield from self._asking.ask(shard, self._rollouts.commits.completions(shard.index))


def rows_of(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Row]:
    """What the learner scores of completions, in their order."""
    by_id = {prompt.prompt_id: prompt for prompt in prompts}
    return [Row.of(by_id[completion.prompt_id], completion) for completion in completions]
