"""Where a run stands between two rounds, and how that is read back from a run directory."""

from __future__ import annotations

from dataclasses import dataclass

from online_dpo.config.run import RunConfig
from online_dpo.data.drawing import Cursor
from online_dpo.loop.control import Control
from online_dpo.loop.references import Reference, first_reference, restore_reference
from online_dpo.store.round_store import RoundStore
from online_dpo.store.run_store import RunStore
from online_dpo.types import Adapter


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """Where a run stands between two rounds; the next round starts from this and nothing else."""

    round_index: int  # of the next round; also the version of `policy`
    cursor: Cursor  # of the prompts
    pairs_cursor: Cursor
    policy: Adapter | None  # None = the base model, which a fresh adapter leaves unchanged
    previous: Adapter | None
    reference: Reference
    control: Control


def restore_position(config: RunConfig, store: RunStore, initial: Adapter | None) -> Position:
    """Where the finished rounds leave off."""
    index = len(store.finished_rounds())
    if index == 0:
        return Position(
            round_index=0,
            cursor=Cursor(),
            pairs_cursor=Cursor(),
            policy=initial,
            previous=None,
            reference=first_reference(config, initial),
            control=Control(),
        )
    last = store.round(index - 1)
    state = last.state()
    return Position(
        round_index=index,
        cursor=Cursor.from_dict(state["cursor"]),
        pairs_cursor=Cursor.from_dict(state["pairs_cursor"]),
        policy=committed_policy(last, index),
        previous=initial if index == 1 else committed_policy(store.round(index - 2), index - 1),
        reference=restore_reference(config, store, initial),
        control=Control.from_dict(state["control"]),
    )


def committed_policy(store: RoundStore, version: int) -> Adapter:
    """The policy that a round made."""
    return Adapter.from_files(version, store.get_files("adapter"))
