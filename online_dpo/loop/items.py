"""What a round trains on: its own items and the data set's, with their log-probs under the reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from online_dpo.config.run import RunConfig
from online_dpo.learner.items import ItemKind, kind_of_items
from online_dpo.loop.references import Reference, score_items
from online_dpo.loop.stages import LearnerStage
from online_dpo.store.round_store import RoundStore
from online_dpo.types import Item, Items

SOURCES = "reference-logps"


def name_of_items(config: RunConfig) -> str:
    """The commit that holds what a round trains on."""
    return kind_of_items(config.objective).commit_name


def commit_items(
    config: RunConfig,
    learner: LearnerStage,
    store: RoundStore,
    sampled: Items,
    written: Items,
    reference: Reference,
) -> Items:
    """What a round trains on, with its reference log-probs, committed once: its own items, then the data set's."""
    kind: ItemKind[Any] = kind_of_items(config.objective)
    if not store.has(kind.commit_name):
        _put_scored(config, learner, store, kind.commit_name, kind.of_round([*sampled, *written]), reference)
    return store.get_records(kind.commit_name, kind.record)


def committed_sources(store: RoundStore) -> dict[str, Any]:
    """What `commit_items` found out about where reference log-probs come from."""
    return store.get_json(SOURCES) if store.has(SOURCES) else {}


def _put_scored(
    config: RunConfig, learner: LearnerStage, store: RoundStore, name: str, items: Sequence[Item], reference: Reference
) -> None:
    """Commit a round's items with the reference's log-probs, and where these come from if there is a choice."""
    scored, sources = score_items(config, learner, items, reference, store.index)
    if store.has(SOURCES):
        store.remove(SOURCES)  # of items that a kill kept from being committed
    if sources:
        store.put_json(SOURCES, sources)
    store.put_records(name, scored)
