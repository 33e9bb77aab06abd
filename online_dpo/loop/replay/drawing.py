"""Which items of earlier rounds come back in a round: drawn once, and committed with where each comes from.

A round's table of items begins with its own; those that come back follow, and after them stands its share of a data
set. The commit `replay` says how many are its own, so that nothing comes back because it came back before.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from online_dpo.config.run import RunConfig
from online_dpo.learner.items import ItemKind, kind_of_items
from online_dpo.loop.draws import samples
from online_dpo.store.run_store import RunStore
from online_dpo.types import Items, derive_seed

REPLAY = "replay"


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """What comes back in a round."""

    items: Sequence[Any]  # with the reference log-probs of their own rounds
    figures: Mapping[str, int]  # `num_replayed`, and by how many that is fewer than `replay.fraction` asks for


def draw_replayed(config: RunConfig, store: RunStore, index: int, own: Items) -> Replayed:
    """The items that come back in a round, by a draw without replacement that the run's seed settles.

    Args:
        config: of the run.
        store: of the run.
        index: of the round.
        own: what the round has of its own, as it was paired.

    Returns:
        Nothing in a run without `replay`, and in a round that samples nothing; the figures alone where the round's
        items are committed.
    """
    if config.replay is None or not samples(config, index):
        return Replayed(items=(), figures={})
    kind: ItemKind[Any] = kind_of_items(config.objective)
    current = store.round(index)
    if current.has(REPLAY) and current.has(kind.commit_name):
        return Replayed(items=(), figures=_figures(current.get_json(REPLAY)))
    num_own = len(kind.of_round(own))
    wanted = num_wanted(config, num_own)
    earlier = [i for i in range(max(0, index - config.replay.rounds), index) if samples(config, i)]
    tables = {i: _own_items(store, i, kind) for i in earlier}
    pool = [(i, place) for i, items in tables.items() for place in range(len(items))]
    rng = random.Random(derive_seed(config.run.seed, REPLAY, index))
    drawn = sorted(rng.sample(pool, min(wanted, len(pool))))
    found: dict[str, Any] = {
        "num_own": num_own,
        "num_missing": wanted - len(drawn),
        "items": [list(place) for place in drawn],
    }
    if not current.has(REPLAY):
        current.put_json(REPLAY, found)
    return Replayed(items=[tables[i][place] for i, place in drawn], figures=_figures(found))


def num_wanted(config: RunConfig, num_own: int) -> int:
    """How many items come back, so that they are `replay.fraction` of all that the round trains on.

    Args:
        config: of the run; `pairs.fraction` of the round is a data set's.
        num_own: items that the round has of its own.
    """
    assert config.replay is not None
    of_data_set = 0.0 if config.pairs is None else config.pairs.fraction or 0.0
    share = config.replay.fraction
    return math.floor(share / (1.0 - share - of_data_set) * num_own + 0.5)


def _figures(found: Mapping[str, Any]) -> dict[str, int]:
    return {"num_replayed": len(found["items"]), "num_replay_missing": found["num_missing"]}


def _own_items(store: RunStore, index: int, kind: ItemKind[Any]) -> list[Any]:
    """What an earlier round made itself. Of a round before a fork that began to replay, what was sampled at all."""
    part = store.round(index)
    items: list[Any] = part.get_records(kind.commit_name, kind.record)
    if part.has(REPLAY):
        return items[: part.get_json(REPLAY)["num_own"]]
    return [i for i in items if any(answer.policy_version is not None for answer in kind.answers(i))]
