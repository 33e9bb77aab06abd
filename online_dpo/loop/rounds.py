"""The loop: sample, judge, pair, update, refresh the reference, evaluate, commit, again.

A generator function over injected stages: it knows no Ray, no clock and no file system, and yields an `Event` for
everything that a person or a log may want to know. Whatever is committed in the store is never done again.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from online_dpo.config.run import RunConfig
from online_dpo.data.preferences import PairDraw, PairSource
from online_dpo.data.prompts import Cursor, PromptSource
from online_dpo.loop import offline
from online_dpo.loop.annotation import label_pairs
from online_dpo.loop.collecting import Collected, Policy, Pusher, collect
from online_dpo.loop.control import advance, findings, measure, stop_reason
from online_dpo.loop.coverage import check_labelled, reopen
from online_dpo.loop.evaluation import committed_evaluation, evaluate
from online_dpo.loop.overoptimisation import compare_with_best
from online_dpo.loop.pair_evaluation import evaluate_pairs
from online_dpo.loop.positions import Position, committed_policy, restore_position
from online_dpo.loop.references import (
    Reference,
    commit_reference,
    committed_sources,
    next_reference,
)
from online_dpo.loop.stages import Event, Stages
from online_dpo.loop.updates import newest_checkpoint, restore_learner, train
from online_dpo.pairing.selection import check_not_empty, select
from online_dpo.statistics.agreement import without_statistics
from online_dpo.statistics.judges import asked_again, judge_warnings, report
from online_dpo.statistics.samples import describe_completions, describe_items, mean
from online_dpo.store.run_store import RoundStore, RunStore
from online_dpo.types import REWARD, Adapter, Items, Prompt, Row, SamplingPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What a run works on, besides its config."""

    config: RunConfig
    prompts: PromptSource | None  # None = nothing is sampled to train on
    evaluation_sets: Mapping[str, Sequence[Prompt]]
    probe: Sequence[Row]
    pairs: PairSource | None = None
    evaluation_pairs: Mapping[str, PairDraw] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gathered:
    """What a round trains on, and where the next round's begins."""

    items: Items
    figures: dict[str, Any]  # of the round's summary
    cursor: Cursor
    pairs_cursor: Cursor


def run_rounds(job: Job, stages: Stages, store: RunStore) -> Iterator[Event]:
    """Play every round that is not finished yet.

    Raises:
        WeightMismatchError: a generator does not hold the learner's weights.
        TooFewLabelsError: a round's judge labelled too few prompts.
        NoPairsError: a round gave no pair at all.
    """
    initial = stages.learner.initial_adapter()
    position = restore_position(job.config, store, initial)
    restore_learner(stages, store, position.round_index)
    game = Rounds(job, stages, store, initial)
    num_rounds = job.config.run.rounds
    yield Event(kind="run_started", round_index=position.round_index, data={"num_rounds": num_rounds})
    game.prune()  # what a kill kept a former process from
    while position.round_index < num_rounds:
        if (reason := stop_reason(job.config, position.control)) is not None:
            yield Event(kind="run_stopped", round_index=position.round_index, data={"reason": reason})
            return
        position = yield from game.play(position)
        game.prune()
    yield Event(kind="run_done", round_index=num_rounds)


class Rounds:
    """The parts of a round, in the order in which they are played. Holds nothing that is not in the store."""

    def __init__(self, job: Job, stages: Stages, store: RunStore, initial: Adapter | None) -> None:
        self.job, self.config, self.stages, self.store, self.initial = job, job.config, stages, store, initial
        self.pusher = Pusher(stages, job.probe, job.config.tolerance, job.config.generator.rescored)

    def play(self, position: Position) -> Generator[Event, None, Position]:
        """One round, from its first uncommitted piece of work to its commit."""
        index = position.round_index
        store = self.store.round(index)
        yield Event(kind="round_started", round_index=index)
        # Learning begins after it, so with a checkpoint it is both committed and in the metrics.
        if index == 0 and newest_checkpoint(store) is None:
            start = Policy(version=0, adapter=self.initial, previous=None)
            yield from self.evaluate(start, position.reference, 0, "evaluation-initial/")
            yield from self.evaluate_pairs(0, 0)
        gathered = yield from self.gather(store, position)
        learned = yield from train(
            self.config, self.stages, self.store, index, gathered.items, position.control.beta_factor
        )
        # What is pushed is what a reader of the run directory gets.
        policy = committed_policy(store, index + 1)
        evaluations: Mapping[str, Any] = {}
        preferences: Mapping[str, Any] = {}
        if self.is_evaluated(index) or index + 1 == self.config.run.rounds:
            updated = Policy(version=index + 1, adapter=policy, previous=position.policy)
            evaluations = yield from self.evaluate(updated, position.reference, index, "evaluation/")
            preferences = yield from self.evaluate_pairs(index, index + 1)
        summary = {
            "policy_version": index + 1,
            "reference_versions": list(position.reference.versions),
            "beta_factor": position.control.beta_factor,
            **gathered.figures,
            **learned,
            "evaluation": evaluations,
            **({"evaluation_pairs": preferences} if preferences else {}),
        }
        return (yield from self.commit(store, position, policy, gathered, summary))

    def gather(self, store: RoundStore, position: Position) -> Generator[Event, None, Gathered]:
        """What the round trains on, with its reference log-probs, committed: own pairs, a data set's, or both."""
        config, index = self.config, position.round_index
        sampled: Items = ()
        figures: dict[str, Any] = {}
        cursor = position.cursor
        if offline.samples(config, index):
            sampled, figures, cursor = yield from self.sample(store, position)
        share = offline.take_share(config, self.job.pairs, store, position.pairs_cursor, sampled)
        if not store.has(offline.name_of_items(config)):
            yield Event(kind="stage", round_index=index, data={"stage": "reference"})
        items = offline.commit_items(config, self.stages.learner, store, sampled, share.items, position.reference)
        figures |= {**share.figures, **describe_items(items), **committed_sources(store)}
        return Gathered(items=items, figures=figures, cursor=cursor, pairs_cursor=share.cursor)

    def sample(
        self, store: RoundStore, position: Position
    ) -> Generator[Event, None, tuple[Items, dict[str, Any], Cursor]]:
        """What the round has of its own with its counts, and where the next round's prompts begin."""
        index = position.round_index
        prompts, draw = self.draw(store, position.cursor)
        yield Event(kind="stage", round_index=index, data={"stage": "sampling", "num_prompts": len(prompts)})
        reopen(store, self.config.generator.shard_prompts, prompts)
        drawn = asked_again(
            self.config.verdicts.repeated, [p.prompt_id for p in prompts], self.config.run.seed, index, REWARD
        )
        collected = yield from collect(
            self.stages,
            store,
            self.pusher,
            Policy(version=index, adapter=position.policy, previous=position.previous),
            prompts=prompts,
            shard_prompts=self.config.generator.shard_prompts,
            plan=training_plan(self.config, index),
            judges=[REWARD],
            again={REWARD: drawn},
        )
        if not store.has(offline.name_of_items(self.config)):  # a bound that is raised later is for later rounds
            check_labelled(store, prompts, collected, self.config.verdicts.min_coverage)
        items, figures = yield from self.pair(prompts, collected, index)
        counts = {f"num_prompts_{reason}": draw[reason] for reason in ("too_long", "empty")}
        cursor = Cursor.from_dict(draw["cursor"])
        said = (collected.verdicts[REWARD], collected.counters[REWARD], collected.repeats[REWARD])
        figures["judges"] = {REWARD: report(collected.completions, *said), **figures.get("judges", {})}
        return items, {"num_prompts": len(prompts), **counts, **figures}, cursor

    def is_evaluated(self, index: int) -> bool:
        """Whether the schedule wants an evaluation after this round, however long the run is."""
        return (index + 1) % self.config.evaluation.every == 0

    def draw(self, store: RoundStore, cursor: Cursor) -> tuple[list[Prompt], dict[str, Any]]:
        """The round's prompts, drawn once and committed with where the next round's begin."""
        if not store.has("prompts"):
            assert self.job.prompts is not None and self.config.prompts is not None
            draw = self.job.prompts.draw(cursor, self.config.prompts.per_round)
            if not store.has("draw"):
                counts = {"cursor": draw.cursor.to_dict(), "too_long": draw.num_too_long, "empty": draw.num_empty}
                store.put_json("draw", counts)
            store.put_records("prompts", draw.prompts)
        return store.get_records("prompts", Prompt), store.get_json("draw")

    def pair(
        self, prompts: Sequence[Prompt], collected: Collected, index: int
    ) -> Generator[Event, None, tuple[Items, dict[str, Any]]]:
        """The round's own pairs, or labelled answers, and its counts."""
        config, verdicts = self.config, collected.verdicts[REWARD]
        found = select(config, prompts, collected.completions, verdicts, index)
        if config.pairing.annotator is not None:
            yield Event(kind="stage", round_index=index, data={"stage": "labelling"})
            found = yield from label_pairs(config, self.stages, self.store.round(index), found)
        figures = {
            **describe_completions(collected.completions),
            **found.figures,
            **without_statistics(collected.counters[REWARD]),
            REWARD: mean([verdict.score for verdict in verdicts if verdict.score is not None]),
        }
        yield Event(kind="paired", round_index=index, data={"num_items": len(found.items), **figures})
        check_not_empty(found, index, len(prompts))
        return found.items, figures

    def evaluate(
        self, policy: Policy, reference: Reference, index: int, base: str
    ) -> Generator[Event, None, Mapping[str, Any]]:
        """Figures of every evaluation set; KL to the initial policy and to what was the reference."""
        sets = self.job.evaluation_sets
        if not sets:
            return {}
        yield Event(kind="stage", round_index=index, data={"stage": "evaluating"})
        baseline = self.initial_evaluation() if policy.version > 0 else None
        summaries = yield from evaluate(
            self.config,
            self.stages,
            self.store.round(index),
            self.pusher,
            policy,
            sets=sets,
            references={"reference": reference.members, "initial": (self.initial,)},
            baseline=baseline,
            round_index=index,
            base=base,
        )
        return {name: _without_scores(summary) for name, summary in summaries.items()}

    def evaluate_pairs(self, index: int, version: int) -> Generator[Event, None, Mapping[str, Any]]:
        """Held-out preference accuracy of every set of pairs, and what it gained over the initial policy."""
        sets = self.job.evaluation_pairs
        if not sets:
            return {}
        yield Event(kind="stage", round_index=index, data={"stage": "evaluating"})
        return (yield from evaluate_pairs(self.config, self.stages, self.store, index, version, sets=sets))

    def initial_evaluation(self) -> dict[str, Any]:
        """Set -> what was found for the initial policy."""
        return {name: committed_evaluation(self.store, name, 0) for name in self.job.evaluation_sets}

    def commit(
        self, store: RoundStore, position: Position, policy: Adapter, gathered: Gathered, summary: dict[str, Any]
    ) -> Generator[Event, None, Position]:
        """Refresh the reference if it is due, see whether all is in bounds and close the round; what comes back starts
        the next one."""
        index = position.round_index
        reference = next_reference(self.config, position.reference, policy)
        commit_reference(store, reference)
        control = position.control
        summary["warnings"] = list(judge_warnings(summary))
        if summary["evaluation"]:
            since = compare_with_best(
                partial(committed_evaluation, self.store),
                list(self.job.evaluation_sets),
                control.best,
                version=index + 1,
                seed=self.config.run.seed,
            )
            measured = measure(index + 1, summary["evaluation"], self.initial_evaluation(), since)
            summary["warnings"] += [finding.message for finding in findings(self.config, measured)]
            # The last round is evaluated in any case; a longer run, which may not, must go on from it all the same.
            control = advance(self.config, control, measured) if self.is_evaluated(index) else control
        # The listener appends the summary to the metrics before the loop goes on, so the position covers it.
        yield Event(kind="round_done", round_index=index, data=summary)
        state = {
            "round": index,
            "policy_version": index + 1,
            "reference_versions": list(reference.versions),
            "control": control.to_dict(),
            "cursor": gathered.cursor.to_dict(),
            "pairs_cursor": gathered.pairs_cursor.to_dict(),
            "metrics": self.store.metrics_position(),
        }
        self.store.finish_round(index, state)
        yield Event(kind="round_committed", round_index=index)
        return Position(
            round_index=index + 1,
            cursor=gathered.cursor,
            pairs_cursor=gathered.pairs_cursor,
            policy=policy,
            previous=position.policy,
            reference=reference,
            control=control,
        )

    def prune(self) -> None:
        """Optimizer state that nothing will continue from, unless the config wants it kept."""
        if self.config.run.keep_optimizer == "last":
            self.store.prune_optimizer()


def training_plan(config: RunConfig, index: int) -> SamplingPlan:
    return SamplingPlan(
        purpose="training",
        round_index=index,
        num_samples=config.sampling.num_samples,
        temperature=config.sampling.temperature,
        top_p=config.sampling.top_p,
        max_tokens=config.sampling.max_tokens,
        stop=tuple(config.sampling.stop),
        run_seed=config.run.seed,
    )


def _without_scores(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Per-prompt scores stay in the run directory; they are too many for a line of the log."""
    return {name: value for name, value in summary.items() if name != "scores"}
