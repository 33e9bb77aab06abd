"""Which policies a round is measured against (DESIGN section 7), and what they say about the round's items."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

from online_dpo.config.control import EnsembleReference, EveryReference, PathReference
from online_dpo.config.run import RunConfig
from online_dpo.errors import WeightMismatchError
from online_dpo.learner.items import PAIRS
from online_dpo.loop.calls import Calls
from online_dpo.loop.stages import Event
from online_dpo.loop.weight_sync import Gap
from online_dpo.statistics.samples import sampler_logps
from online_dpo.store.round_store import RoundStore
from online_dpo.store.run_store import RunStore
from online_dpo.types import Adapter, AnyItem, Item, Pair, WeightsRef

NUM_GAP_PAIRS = 8
"""Pairs whose log-probs are computed by the learner as well where the sampler's are used; enough to see a wrong one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """What a round is measured against: the mean of its members' log-probs."""

    members: tuple[WeightsRef, ...]  # none where the objective needs no reference
    versions: tuple[int, ...]  # of the members that are policies of this run, oldest first; none of a given reference


def first_reference(config: RunConfig, initial: Adapter | None) -> Reference:
    """The first round's."""
    if not config.objective.needs_reference:
        return Reference(members=(), versions=())
    if isinstance(config.reference, PathReference):
        return Reference(members=("reference_model",), versions=())
    return Reference(members=(initial,), versions=(0,))


def next_reference(config: RunConfig, reference: Reference, policy: Adapter) -> Reference:
    """The next round's, once a round has made `policy`, whose version is the number of rounds played."""
    schedule = config.reference
    if isinstance(schedule, EveryReference) and policy.version % schedule.rounds == 0:
        return Reference(members=(policy,), versions=(policy.version,))
    if isinstance(schedule, EnsembleReference):
        return Reference(
            members=(*reference.members, policy)[-schedule.last :],
            versions=(*reference.versions, policy.version)[-schedule.last :],
        )
    return reference


def commit_reference(store: RoundStore, reference: Reference) -> None:
    """Commit a reference that is one adapter beside the round; several are committed already, each with its round."""
    match reference.members:
        case (Adapter() as adapter,) if not store.has("reference"):
            store.put_files("reference", adapter.files())


def restore_reference(config: RunConfig, store: RunStore, initial: Adapter | None) -> Reference:
    """The reference that the last finished round left, read back and never derived anew (DESIGN invariant 5)."""
    last = store.round(len(store.finished_rounds()) - 1)
    versions = tuple(last.state()["reference_versions"])
    if not (versions and config.objective.needs_reference):  # before a fork, another objective may have needed one
        return first_reference(config, initial)
    if len(versions) == 1:
        folder = last.get_files("reference") if last.has("reference") else None
        return Reference(
            members=(None if folder is None else Adapter.from_files(versions[0], folder),), versions=versions
        )
    return Reference(members=tuple(policy_of(store, version, initial) for version in versions), versions=versions)


def score_items(
    config: RunConfig, calls: Calls, items: Sequence[Item], reference: Reference, version: int
) -> Generator[Event, None, tuple[list[Item], dict[str, Any]]]:
    """The items with the reference's log-probs, and figures about where these come from.

    Args:
        config: with `reference.logps: sampler`, pairs whose answers were both sampled from the reference itself keep
            the sampler's log-probs. These are at temperature 1 and over the whole vocabulary, however it sampled.
        calls: of the process, whose learner computes the others.
        items: of a round.
        reference: of the round.
        version: of the policy that sampled.

    Returns (as the generator's value): both.

    Raises:
        WeightMismatchError: the sampler's log-probs are not the learner's, up to the tolerance of the weight checks.
    """
    if config.reference.logps != "sampler":
        return (yield from calls.learner("reference_logps", items, reference.members)), {}
    from_sampler = [reference.versions == (version,) and _was_sampled_from(item, version) for item in items]
    sampled = [item for item, is_sampled in zip(items, from_sampler, strict=True) if is_sampled]
    others = [item for item, is_sampled in zip(items, from_sampler, strict=True) if not is_sampled]
    scored = iter((yield from calls.learner("reference_logps", others, reference.members)) if others else [])
    gap = yield from _measured_gap(calls, sampled[:NUM_GAP_PAIRS], reference, config.tolerance)
    figures = {
        "num_reference_sampler": len(sampled),
        "num_reference_recomputed": len(others),
        **gap,
    }
    return [
        _as_sampled(item) if flag else next(scored) for item, flag in zip(items, from_sampler, strict=True)
    ], figures


def policy_of(store: RunStore, version: int, initial: Adapter | None) -> Adapter | None:
    """A policy of the run, by the number of rounds that made it; None = the base model."""
    return initial if version == 0 else Adapter.from_files(version, store.round(version - 1).get_files("adapter"))


def _was_sampled_from(item: AnyItem, version: int) -> bool:
    """Whether both answers are samples of one policy; those of a data set are of none."""
    return isinstance(item, Pair) and item.chosen.policy_version == item.rejected.policy_version == version


def _as_sampled(item: Item) -> Item:
    assert isinstance(item, Pair)
    return PAIRS.with_reference(item, [[logps] for logps in sampler_logps([item.chosen, item.rejected])])


def _measured_gap(
    calls: Calls, items: Sequence[AnyItem], reference: Reference, tolerance: float
) -> Generator[Event, None, dict[str, float]]:
    """How far the sampler's log-probs are from the learner's; nothing without items."""
    if not items:
        return {}
    pairs = [item for item in items if isinstance(item, Pair)]
    found = sampler_logps([answer for pair in pairs for answer in (pair.chosen, pair.rejected)])
    rows = [row for pair in pairs for row in PAIRS.scored_rows(pair)]
    [scores] = yield from calls.learner("score", rows, reference.members)
    gap = Gap.between(found, scores.token_logps)
    if gap.exceeds(tolerance):
        raise WeightMismatchError(
            f"the sampler's log-probs are {gap.mean:.3g} nats per token from the learner's ({gap.row_max:.3g} in the "
            f"worst row), tolerance {tolerance:.3g}; they cannot stand for the reference: start a new run with "
            f"reference.logps=recompute"
        )
    return {"reference_gap": gap.mean, "reference_gap_row_max": gap.row_max, "reference_gap_max": gap.max}
