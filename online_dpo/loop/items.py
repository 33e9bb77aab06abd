"""What a round trains on: its own items and the data set's, with their log-probs under the reference."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from typing import Any

from online_dpo.config.run import RunConfig
from online_dpo.learner.items import ItemKind, kind_of, kind_of_items
from online_dpo.loop.calls import Calls
from online_dpo.loop.references import Reference, score_items
from online_dpo.loop.stages import Event
from online_dpo.statistics.samples import mean
from online_dpo.store.round_store import RoundStore
from online_dpo.types import Item, Items

SOURCES = "reference-logps"


def name_of_items(config: RunConfig) -> str:
    """The commit that holds what a round trains on."""
    return kind_of_items(config.objective).commit_name


def commit_items(
    config: RunConfig,
    calls: Calls,
    store: RoundStore,
    sampled: Items,
    written: Items,
    reference: Reference,
    version: int,
) -> Generator[Event, None, Items]:
    """What a round trains on, with its reference log-probs, committed once: its own items, then the data set's.

    Args:
        config: of the run.
        calls: of the process, whose learner scores.
        store: of the round.
        sampled: its own items.
        written: the data set's.
        reference: of the round.
        version: of the policy that sampled.

    Returns (as the generator's value): the items.
    """
    kind: ItemKind[Any] = kind_of_items(config.objective)
    if not store.has(kind.commit_name):
        items = kind.of_round([*sampled, *written])
        yield from _put_scored(config, calls, store, kind, items, reference, version)
    return store.get_records(kind.commit_name, kind.record)


def committed_sources(store: RoundStore) -> dict[str, Any]:
    """What `commit_items` found out about where reference log-probs come from."""
    return store.get_json(SOURCES) if store.has(SOURCES) else {}


def on_policy_share(items: Items, version: int) -> float | None:
    """Share of the answers in items that a policy sampled, each as often as it is in one; None without items.

    Args:
        items: that a round trains on.
        version: of the policy that sampled for the round.
    """
    answers = [answer for item in items for answer in kind_of(item).answers(item)]
    return mean([float(answer.policy_version == version) for answer in answers])


def _put_scored(
    config: RunConfig,
    calls: Calls,
    store: RoundStore,
    kind: ItemKind[Any],
    items: Sequence[Item],
    reference: Reference,
    version: int,
) -> Iterator[Event]:
    """Commit a round's items with the reference's log-probs, and where these come from if there is a choice."""
    scored, sources = yield from score_items(config, calls, items, reference, version)
    if store.has(SOURCES):
        store.remove(SOURCES)  # of items that a kill kept from being committed
    if sources:
        store.put_json(SOURCES, sources)
    store.put_records(kind.commit_name, scored)
