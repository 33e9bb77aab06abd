"""Shards of prompts -> committed completions and verdicts. Shards are judged while later ones are still sampled."""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from online_dpo.errors import JudgingStopped
from online_dpo.loop.stages import Event, Stages, Task
from online_dpo.loop.weight_checks import Gap, check_digests, check_gap, check_versions
from online_dpo.statistics.agreement import without_statistics
from online_dpo.store.run_store import RoundStore
from online_dpo.store.shards import commit_judged, get_parts, name_commit, remove_parts, sum_counters
from online_dpo.types import (
    REWARD,
    Adapter,
    Completion,
    Judged,
    Prompt,
    Row,
    Sampled,
    SamplingPlan,
    Scores,
    Shard,
    Verdict,
    sampler_logps,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """A version of the policy and the one before it; None = the base model."""

    version: int
    adapter: Adapter | None
    previous: Adapter | None  # meaningless at version 0


class Pusher:
    """Pushes a policy when something is about to be sampled from it, and checks that it arrived."""

    def __init__(
        self, stages: Stages, probe: Sequence[Row], tolerance: float, rescored: int | Literal["all"] = "all"
    ) -> None:
        self._stages, self._probe, self.tolerance, self.rescored = stages, probe, tolerance, rescored
        self._version: int | None = None

    def ensure(self, policy: Policy, round_index: int) -> Iterator[Event]:
        """Push unless the generators hold this version already.

        Raises:
            WeightMismatchError: other bytes arrived, or the probe set is scored differently.
        """
        if self._version == policy.version:
            return
        received = self._stages.push(policy.adapter, policy.version)
        check_digests(policy.adapter, received)
        learner = [list(s.token_logps) for s in self._stages.learner.score(self._probe, scored_under(policy))]
        replicas = self._stages.probe(self._probe)
        probed = [check_gap("probe", *_gaps(found, learner), self.tolerance) for found in replicas]
        figures = max(probed, key=lambda replica: replica["probe_gap"])  # the log gets the one that is furthest off
        self._version = policy.version
        yield Event(kind="pushed", round_index=round_index, data={"policy_version": policy.version, **figures})


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """All samples of one plan with all verdicts on them, in prompt order."""

    completions: tuple[Completion, ...]
    verdicts: Mapping[str, tuple[Verdict, ...]]  # judge -> verdicts
    counters: Mapping[str, Mapping[str, int | float]]  # judge -> its host's counters, those of repeats included
    repeats: Mapping[str, tuple[Verdict, ...]]  # judge -> what it said when it was asked again


def collect(
    stages: Stages,
    store: RoundStore,
    pusher: Pusher,
    policy: Policy,
    *,
    prompts: Sequence[Prompt],
    shard_prompts: int,
    plan: SamplingPlan,
    judges: Sequence[str],
    base: str = "",
    again: Mapping[str, Collection[str]] | None = None,
) -> Generator[Event, None, Collected]:
    """Sample and judge what is not committed yet; commit each shard and each judge's verdicts as they come.

    The first samples of every engine after a push are re-scored by the learner before they, or anything that the
    engine sampled after them, are committed: what a stale engine sampled is never kept.

    Args:
        base: prefix of the commits' names inside the round, such as `evaluation/heldout/`.
        again: judge -> prompts that it is asked about a second time, where it had an opinion; no use is made of what
            it then says but to compare.

    Returns (as the generator's value): `Collected`.

    Raises:
        JudgingStopped: a judge can or may go on no more. All that was said until then is committed, and a continuation
            asks for the rest; what is being sampled meanwhile is not waited for.
    """
    work = _Work(stages, store, pusher, policy, plan, judges, base, again or {})
    shards = [
        Shard(index=i, prompts=tuple(prompts[start : start + shard_prompts]))
        for i, start in enumerate(range(0, len(prompts), shard_prompts))
    ]
    missing = [shard for shard in shards if not store.has(work.name("completions", shard))]
    if missing:
        yield from pusher.ensure(policy, store.index)
    for shard in shards:
        if shard not in missing:
            yield from work.judge(shard, tuple(store.get_records(work.name("completions", shard), Completion)))
    for shard in missing:
        work.running[stages.start_sampling(shard, plan, policy.version)] = ("sampled", shard, None)
    while waited_for := work.waited_for():
        task, result = stages.first_done(waited_for)
        kind, shard, context = work.running.pop(task)
        yield from getattr(work, f"on_{kind}")(shard, context, result)
    if work.stopped is not None:
        raise JudgingStopped(f"round {store.index + 1}: {work.stopped}")
    return work.collected(shards)


class _Work:
    """The tasks of one `collect` that are under way, and what to do when one is done."""

    def __init__(
        self,
        stages: Stages,
        store: RoundStore,
        pusher: Pusher,
        policy: Policy,
        plan: SamplingPlan,
        judges: Sequence[str],
        base: str,
        again: Mapping[str, Collection[str]],
    ) -> None:
        self.stages, self.store, self.pusher, self.policy = stages, store, pusher, policy
        self.plan, self.judges, self.base, self.again = plan, judges, base, again
        self.running: dict[Task, tuple[str, Shard, Any]] = {}
        self.waiting: list[tuple[Shard, Sampled]] = []  # until no engine is being checked
        self.stopped: str | None = None  # why a judge stopped

    def name(self, what: str, shard: Shard, judge: str = REWARD, *, again: bool = False) -> str:
        return name_commit(self.base, what, shard.index, judge, again=again)

    def on_sampled(self, shard: Shard, _: None, result: Sampled) -> Iterator[Event]:
        check_versions(self.policy.version, result.completions)
        if result.first_since_push:
            rows = rows_of(shard.prompts, self._rescored(result))
            self.running[self.stages.start_scoring(rows, scored_under(self.policy))] = ("rescored", shard, result)
        else:
            self.waiting.append((shard, result))
            yield from self._commit_waiting()

    def on_rescored(self, shard: Shard, sampled: Sampled, scores: list[Scores]) -> Iterator[Event]:
        found = sampler_logps(self._rescored(sampled))
        gaps = _gaps(found, [list(s.token_logps) for s in scores])
        # An event, not a part of any commit: which shard is the first after a push depends on where a run was resumed.
        yield self._event("rescored", shard, **check_gap("sampled", *gaps, self.pusher.tolerance))
        yield from self._commit_completions(shard, sampled)
        yield from self._commit_waiting()

    def waited_for(self) -> list[Task]:
        """Once a judge has stopped: only what others are still being paid for."""
        judging = ("judged", "repeated")
        return [task for task, (kind, _, _) in self.running.items() if self.stopped is None or kind in judging]

    def on_judged(self, shard: Shard, judge: str, result: Judged) -> Iterator[Event]:
        whole = commit_judged(self.store, shard, result, lambda what: self.name(what, shard, judge))
        if whole is None:
            self.stopped = self.stopped or result.stopped
            return
        seconds = result.latencies_s
        yield self._event("shard_judged", shard, judge=judge, verdicts=whole.verdicts, latencies_s=seconds)
        self.ask_again(shard, judge)

    def on_repeated(self, shard: Shard, judge: str, result: Judged) -> Iterator[Event]:
        whole = commit_judged(self.store, shard, result, lambda what: self.name(what, shard, judge, again=True))
        if whole is None:
            self.stopped = self.stopped or result.stopped
            return
        yield self._event("shard_repeated", shard, judge=judge, latencies_s=result.latencies_s)

    def judge(self, shard: Shard, completions: tuple[Completion, ...]) -> Iterator[Event]:
        for judge in self.judges:
            if self.stopped is None and not self.store.has(self.name("verdicts", shard, judge)):
                yield self._event("judging_started", shard, judge=judge)
                self._ask(shard, judge, completions, again=False)
            elif self.stopped is None:
                remove_parts(self.store, self.name("parts", shard, judge))  # which a kill left beside the whole
                self.ask_again(shard, judge)

    def ask_again(self, shard: Shard, judge: str) -> None:
        """About those of the shard's prompts that were drawn for it, and on which the judge has an opinion."""
        drawn = self.again.get(judge, ())
        if self.stopped is not None or not any(prompt.prompt_id in drawn for prompt in shard.prompts):
            return
        if self.store.has(self.name("verdicts", shard, judge, again=True)):
            remove_parts(self.store, self.name("parts", shard, judge, again=True))
            return
        verdicts = self.store.get_records(self.name("verdicts", shard, judge), Verdict)
        wanted = {v.prompt_id for v in verdicts if v.reason is None and v.prompt_id in drawn}
        completions = self.store.get_records(self.name("completions", shard), Completion)
        if wanted:
            self._ask(shard, judge, [c for c in completions if c.prompt_id in wanted], again=True)

    def _ask(self, shard: Shard, judge: str, completions: Sequence[Completion], *, again: bool) -> None:
        """What is not among the parts yet."""
        parts = get_parts(self.store, self.name("parts", shard, judge, again=again))
        judged = {verdict.prompt_id for part in parts for verdict in part.verdicts}
        asked = tuple(c for c in completions if c.prompt_id not in judged)
        task = self.stages.start_judging(judge, shard, asked, again=again)
        self.running[task] = ("repeated" if again else "judged", shard, judge)

    def collected(self, shards: Sequence[Shard]) -> Collected:
        """Read back from the store: what is used is what was committed."""
        verdicts: dict[str, tuple[Verdict, ...]] = {}
        repeats: dict[str, tuple[Verdict, ...]] = {}
        counters: dict[str, Mapping[str, int | float]] = {}
        for judge in self.judges:
            repeated = [shard for shard in shards if self.store.has(self.name("verdicts", shard, judge, again=True))]
            parts = [self.store.get_records(self.name("verdicts", shard, judge), Verdict) for shard in shards]
            verdicts[judge] = tuple(verdict for part in parts for verdict in part)
            parts = [self.store.get_records(self.name("verdicts", s, judge, again=True), Verdict) for s in repeated]
            repeats[judge] = tuple(verdict for part in parts for verdict in part)
            counted = [self.store.get_json(self.name("counters", shard, judge)) for shard in shards]
            paid = [self.store.get_json(self.name("counters", shard, judge, again=True)) for shard in repeated]
            counters[judge] = sum_counters([*counted, *map(without_statistics, paid)])
        completions = [self.store.get_records(self.name("completions", shard), Completion) for shard in shards]
        return Collected(
            completions=tuple(c for part in completions for c in part),
            verdicts=verdicts,
            counters=counters,
            repeats=repeats,
        )

    def _rescored(self, sampled: Sampled) -> Sequence[Completion]:
        """The samples that are re-scored, evenly spread over the shard."""
        found, wanted = sampled.completions, self.pusher.rescored
        if wanted == "all" or wanted >= len(found):
            return found
        return [found[i * len(found) // wanted] for i in range(wanted)]

    def _commit_waiting(self) -> Iterator[Event]:
        # Which engine sampled a shard is not known here, so all wait while any engine is under suspicion.
        while self.waiting and not any(kind == "rescored" for kind, _, _ in self.running.values()):
            yield from self._commit_completions(*self.waiting.pop(0))

    def _commit_completions(self, shard: Shard, result: Sampled) -> Iterator[Event]:
        self.store.put_records(self.name("completions", shard), result.completions)
        num_tokens = sum(len(c.token_ids) for c in result.completions)
        yield self._event("shard_sampled", shard, num_tokens=num_tokens, num_completions=len(result.completions))
        yield from self.judge(shard, result.completions)

    def _event(self, kind: str, shard: Shard, **data: Any) -> Event:
        return Event(kind=kind, round_index=self.store.index, data={"shard": shard.index, "base": self.base, **data})


def rows_of(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Row]:
    by_id = {prompt.prompt_id: prompt for prompt in prompts}
    return [Row.of(by_id[completion.prompt_id], completion) for completion in completions]


def scored_under(policy: Policy) -> list[Any]:
    return ["policy"] if policy.version == 0 else ["policy", policy.previous]


def _gaps(found: Any, learner: Sequence[Any]) -> tuple[Gap, Gap | None]:
    return Gap.between(found, learner[0]), Gap.between(found, learner[1]) if len(learner) > 1 else None
