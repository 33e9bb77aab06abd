"""The loop. A round: draw, push, sample and judge, pair, reference, update, refresh, evaluate, commit.

A generator function over injected stages: it knows no Ray, no clock and no file system, and yields an `Event` for
everything that a person or a log may want to know. Whatever is committed in the store is never done again.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from online_dpo.config.pairing import ANNOTATOR
from online_dpo.config.run import RunConfig
from online_dpo.data.decontamination import Overlap
from online_dpo.data.drawing import Cursor, MixtureCursor
from online_dpo.data.mixtures import AnyPrompts
from online_dpo.data.preferences import PairDraw, PairSource
from online_dpo.errors import AnswersMissing
from online_dpo.loop.annotation import annotate
from online_dpo.loop.calls import Calls
from online_dpo.loop.candidates.figures import candidate_warnings, describe_candidates, own_and_judged, scores_of
from online_dpo.loop.candidates.writers import Writers
from online_dpo.loop.compared_policies import initial_answers
from online_dpo.loop.control import advance, findings, measure
from online_dpo.loop.draws import DrawnPrompts, draw_items, sampled_version, samples
from online_dpo.loop.evaluation import committed_evaluation, evaluate, evaluation_work
from online_dpo.loop.items import commit_items, committed_sources, name_of_items, on_policy_share
from online_dpo.loop.pair_evaluation import evaluate_pairs
from online_dpo.loop.people.asking import People
from online_dpo.loop.people.leaving import forget_leaving, leave
from online_dpo.loop.positions import Position, restore_position, why_stopped
from online_dpo.loop.references import Reference, commit_reference, next_reference, policy_of
from online_dpo.loop.replay.drawing import draw_replayed
from online_dpo.loop.rollouts import Collected
from online_dpo.loop.sampling import RoundSampler
from online_dpo.loop.stages import Event, Stages
from online_dpo.loop.updates import newest_checkpoint, restore_learner, train
from online_dpo.loop.verdicts import NOTHING_SAID, report_on
from online_dpo.loop.weight_sync import Policy, Pusher
from online_dpo.pairing.selection import check_not_empty, select
from online_dpo.statistics.domains import domain_figures
from online_dpo.statistics.judge_warnings import judge_warnings, warnings
from online_dpo.statistics.overoptimisation import compare_with_best
from online_dpo.statistics.samples import describe_completions, describe_items, mean
from online_dpo.statistics.update_warnings import update_warnings
from online_dpo.store.round_store import RoundStore
from online_dpo.store.run_store import RunStore
from online_dpo.types import REWARD, Adapter, Completion, Items, Prompt, Row


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What a run works on, besides its config."""

    config: RunConfig
    prompts: AnyPrompts | None  # None = nothing is sampled to train on
    evaluation_sets: Mapping[str, Sequence[Prompt]]
    probe: Sequence[Row]
    pairs: PairSource | None = None
    evaluation_pairs: Mapping[str, PairDraw] = field(default_factory=dict)
    overlaps: Sequence[Overlap] = ()  # training prompts that are held out as well
    measured: Callable[[Completion], Completion] = lambda completion: completion  # with the length of its answer
    keeps_special_tokens: bool = False  # in the texts of completions, since tags of thoughts are such
    writers: Writers | None = None  # of candidates


@dataclass(frozen=True, slots=True, kw_only=True)
class Gathered:
    """What a round trains on, and where the next round's begins."""

    items: Items
    figures: Mapping[str, Any]  # of the round's summary
    cursor: Cursor | MixtureCursor
    pairs_cursor: Cursor


def run_rounds(job: Job, stages: Stages, store: RunStore, people: People | None = None) -> Iterator[Event]:
    """Play every round that is not finished yet.

    Where people have not answered and the run is not to wait for them, it ends with the event `run_left`.

    Args:
        job: what the run works on.
        stages: everything outside this process.
        store: of the run.
        people: the human judges.

    Raises:
        WeightMismatchError: a generator does not hold the learner's weights.
        LowCoverageError: a round's judge covered too few prompts.
        NoPairsError: a round gave no pair at all.
    """
    initial = stages.learner.initial_adapter()
    position = restore_position(job.config, store, initial)
    restore_learner(stages, store, position.round_index)
    rounds = Rounds(job, stages, store, initial, people)
    num_rounds = job.config.run.rounds
    is_evaluated = bool(job.evaluation_sets or job.evaluation_pairs)
    data = {"num_rounds": num_rounds, "evaluated_every": job.config.evaluation.every if is_evaluated else None}
    yield Event(kind="run_started", round_index=position.round_index, data=data)
    rounds.prune()  # what a kill kept a former process from
    forget_leaving(store)
    while position.round_index < num_rounds:
        if (reason := why_stopped(job.config, store)) is not None:
            yield Event(kind="run_stopped", round_index=position.round_index, data={"reason": reason})
            return
        try:
            position = yield from rounds.play(position)
        except AnswersMissing:
            assert people is not None
            data = leave(people, store.round(position.round_index))
            yield Event(kind="run_left", round_index=position.round_index, data=data)
            return
        rounds.prune()
    yield Event(kind="run_done", round_index=num_rounds)


class Rounds:
    """The parts of a round, in the order in which they are played. Holds nothing that is not in the store."""

    def __init__(
        self, job: Job, stages: Stages, store: RunStore, initial: Adapter | None, people: People | None = None
    ) -> None:
        self.job, self.config, self.stages, self.store, self.initial = job, job.config, stages, store, initial
        in_turns = job.config.layout == "colocated"
        self.calls = Calls(stages, people, measured=job.measured)
        self.pusher = Pusher(stages, job.probe, job.config.tolerance, job.config.generator.rescored, in_turns=in_turns)
        self.sampler = RoundSampler(job.config, job.prompts, self.calls, store, self.pusher, job.writers)

    def play(self, position: Position) -> Generator[Event, None, Position]:
        """One round, from its first uncommitted piece of work to its commit.

        Returns (as the generator's value): where the next round starts.
        """
        index = position.round_index
        store = self.store.round(index)
        yield Event(kind="round_started", round_index=index)
        yield from self.evaluate_initial(store, position.reference)
        gathered = Gathered(items=(), figures={}, cursor=position.cursor, pairs_cursor=position.pairs_cursor)
        if samples(self.config, index):
            policy = self.sampler.policy(position)
            drawn, rollouts = yield from self.sampler.draw(store, position.cursor)
            yield from self.sampler.push(rollouts, policy)
            collected = yield from self.sampler.sample_and_judge(rollouts, policy)
            ahead = yield from self.sampler.sample_ahead(position, drawn.cursor)
            gathered = yield from self.pair(store, position, drawn, collected)
        else:
            ahead = yield from self.sampler.sample_ahead(position, position.cursor)
        self.pusher.rest()
        gathered = yield from self.reference(store, position.reference, gathered)
        learned = yield from self.update(index, gathered.items, position.control.beta_factor)
        yield from self.sampler.settle(index, ahead)
        # What is pushed next is what a reader of the run directory gets.
        updated = Policy(
            version=index + 1, adapter=policy_of(self.store, index + 1, self.initial), previous=position.policy
        )
        reference = self.refresh(store, position.reference, updated)
        evaluated = yield from self.evaluate(store, position.reference, updated)
        summary = {
            "policy_version": updated.version,
            "reference_versions": list(position.reference.versions),
            "beta_factor": position.control.beta_factor,
            **gathered.figures,
            **learned,
            **evaluated,
        }
        return (yield from self.commit(position, gathered, updated, reference, summary))

    def pair(
        self, store: RoundStore, position: Position, drawn: DrawnPrompts, collected: Collected
    ) -> Generator[Event, None, Gathered]:
        """The round's own pairs, or labelled answers; an annotator settles the pairs where there is one."""
        config, said = self.config, collected.said.get(REWARD, NOTHING_SAID)
        selected = select(config, drawn.prompts, collected.completions, said.verdicts, store.index)
        own, judged = own_and_judged(collected.completions, config.assumed_better)
        found = collected.said.items()
        reports, annotator = {name: report_on(judged, about, config.view) for name, about in found}, {}
        if config.pairing.annotator is not None:
            yield Event(kind="stage", round_index=store.index, data={"stage": "annotating"})
            annotated = yield from annotate(config, self.calls, store, selected)
            selected = annotated.selected
            reports[ANNOTATOR] = report_on(annotated.answers, annotated.said, annotated.view)
            annotator = {"annotator": {**annotated.figures, **annotated.said.counters}}
        figures = {
            **describe_completions(own, config.view),
            **selected.figures,
            **annotator,
            **said.counters,
            REWARD: mean(scores_of(own, said.verdicts)),
            **describe_candidates(config, store, collected.completions, said.verdicts, selected.items),
            **domain_figures(config.prompts, drawn.prompts, own, said.verdicts, selected.items),
        }
        yield Event(kind="paired", round_index=store.index, data={"num_items": len(selected.items), **figures})
        told = [warning for judge, found in reports.items() for warning in warnings(judge, found)]
        check_not_empty(selected, store.index, len(drawn.prompts), told)
        staleness = {"staleness": store.index - sampled_version(config, store.index)} if config.overlap else {}
        return Gathered(
            items=selected.items,
            figures={**drawn.figures, **staleness, **figures, "judges": reports},
            cursor=drawn.cursor,
            pairs_cursor=position.pairs_cursor,
        )

    def reference(
        self, store: RoundStore, reference: Reference, gathered: Gathered
    ) -> Generator[Event, None, Gathered]:
        """What a round trains on, with reference log-probs: its own items, those of earlier rounds, a data set's."""
        replayed = draw_replayed(self.config, self.store, store.index, gathered.items)
        sampled: Any = [*gathered.items, *replayed.items]
        written = draw_items(self.config, self.job.pairs, store, gathered.pairs_cursor, sampled)
        if not store.has(name_of_items(self.config)):
            yield Event(kind="stage", round_index=store.index, data={"stage": "reference"})
        version = sampled_version(self.config, store.index)
        items = yield from commit_items(self.config, self.calls, store, sampled, written.items, reference, version)
        further = {**written.figures, **replayed.figures, "on_policy_share": on_policy_share(items, version)}
        figures = {**gathered.figures, **further, **describe_items(items), **committed_sources(store)}
        return replace(gathered, items=items, figures=figures, pairs_cursor=written.cursor)

    def update(self, index: int, items: Items, beta_factor: float) -> Generator[Event, None, dict[str, float]]:
        """The round's optimizer steps; commits the learner's state and the new policy's adapter."""
        return train(self.config, self.calls, self.store, index, items, beta_factor)

    def refresh(self, store: RoundStore, reference: Reference, updated: Policy) -> Reference:
        """The next round's reference, committed: the new policy where the schedule says so."""
        assert updated.adapter is not None
        found = next_reference(self.config, reference, updated.adapter)
        commit_reference(store, found)
        return found

    def evaluate(
        self, store: RoundStore, reference: Reference, updated: Policy
    ) -> Generator[Event, None, dict[str, Any]]:
        """Fresh samples and held-out pairs under the new policy, where the schedule wants them or the run ends."""
        found: dict[str, Any] = {"evaluation": {}}
        if self.is_evaluated(store.index) or store.index + 1 == self.config.run.rounds:
            found["evaluation"] = yield from self.evaluate_sets(store, reference, updated)
            preferences = yield from self.evaluate_pairs(store, updated)
            found |= {"evaluation_pairs": preferences} if preferences else {}
        return found

    def evaluate_initial(self, store: RoundStore, reference: Reference) -> Iterator[Event]:
        """What every later evaluation is compared with, before the first round learns anything."""
        # Learning begins after it, so with a checkpoint it is both committed and in the metrics.
        if store.index == 0 and newest_checkpoint(store) is None:
            initial = Policy(version=0, adapter=self.initial, previous=None)
            yield from self.evaluate_sets(store, reference, initial)
            yield from self.evaluate_pairs(store, initial)

    def evaluate_sets(
        self, store: RoundStore, reference: Reference, policy: Policy
    ) -> Generator[Event, None, Mapping[str, Any]]:
        """Figures of every evaluation set; KL to the initial policy and to what was the reference."""
        sets = self.job.evaluation_sets
        if not sets:
            return {}
        work = evaluation_work(self.config, store, sets, policy.version)
        data = {"stage": "evaluating", "policy_version": policy.version, **work}
        yield Event(kind="stage", round_index=store.index, data=data)
        summaries = yield from evaluate(
            self.config,
            self.calls,
            store,
            self.pusher,
            policy,
            sets=sets,
            references={"reference": reference.members, "initial": (self.initial,)},
            baseline=self.initial_evaluation() if policy.version > 0 else None,
            initial_answers=lambda name: initial_answers(self.store, self.config, name, sets[name]),
        )
        return {name: _without_scores(summary) for name, summary in summaries.items()}

    def evaluate_pairs(self, store: RoundStore, policy: Policy) -> Generator[Event, None, Mapping[str, Any]]:
        """Held-out preference accuracy of every set of pairs, and what it gained over the initial policy."""
        sets = self.job.evaluation_pairs
        if not sets:
            return {}
        data = {"stage": "evaluating", "policy_version": policy.version}
        yield Event(kind="stage", round_index=store.index, data=data)
        return (yield from evaluate_pairs(self.config, self.stages, self.store, store.index, policy.version, sets=sets))

    def is_evaluated(self, index: int) -> bool:
        """Whether the schedule wants an evaluation after this round, however long the run is."""
        return (index + 1) % self.config.evaluation.every == 0

    def initial_evaluation(self) -> dict[str, Any]:
        """Set -> what was found for the initial policy."""
        return {name: committed_evaluation(self.store, name, 0) for name in self.job.evaluation_sets}

    def commit(
        self,
        position: Position,
        gathered: Gathered,
        updated: Policy,
        reference: Reference,
        summary: dict[str, Any],
    ) -> Generator[Event, None, Position]:
        """See whether all is in bounds and close the round; what comes back starts the next one."""
        index, control = position.round_index, position.control
        assert updated.adapter is not None
        summary["warnings"] = [*judge_warnings(summary), *update_warnings(summary, self.config.learner)]
        summary["warnings"] += candidate_warnings(self.store, index, summary)
        if summary["evaluation"]:
            since = compare_with_best(
                partial(committed_evaluation, self.store),
                list(self.job.evaluation_sets),
                control.best,
                version=updated.version,
                seed=self.config.run.seed,
            )
            measured = measure(updated.version, summary["evaluation"], self.initial_evaluation(), since)
            summary["warnings"] += [finding.message for finding in findings(self.config, measured)]
            # The last round is evaluated in any case; a longer run, which may not, must go on from it all the same.
            control = advance(self.config, control, measured) if self.is_evaluated(index) else control
        # The listener appends the summary to the metrics before the loop goes on, so the position covers it.
        yield Event(kind="round_done", round_index=index, data=summary)
        state = {
            "round": index,
            "policy_version": updated.version,
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
            policy=updated.adapter,
            previous=position.policy,
            reference=reference,
            control=control,
        )

    def prune(self) -> None:
        """Optimizer state that nothing will continue from, unless the config wants it kept."""
        if self.config.run.keep_optimizer == "last":
            self.store.prune_optimizer()


def _without_scores(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Per-prompt scores stay in the run directory; they are too many for a line of the log."""
    return {name: value for name, value in summary.items() if name != "scores"}
