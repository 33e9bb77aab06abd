"""Where a run stands between two rounds, and how that is read back from a run directory."""

from __future__ import annotations

from dataclasses import dataclass

from online_dpo.config.run import RunConfig
from online_dpo.data.drawing import Cursor, MixtureCursor, read_cursor
from online_dpo.loop.control import Control, stop_reason
from online_dpo.loop.references import Reference, first_reference, policy_of, restore_reference
from online_dpo.store.run_store import RunStore
from online_dpo.types import Adapter


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """Where a run stands between two rounds; the next round starts from this and nothing else."""

    round_index: int  # of the next round; also the version of `policy`
    cursor: Cursor | MixtureCursor  # of the prompts
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
        cursor=read_cursor(state["cursor"]),
        pairs_cursor=Cursor.from_dict(state["pairs_cursor"]),
        policy=policy_of(store, index, initial),
        previous=policy_of(store, index - 1, initial),
        reference=restore_reference(config, store, initial),
        control=Control.from_dict(state["control"]),
    )


def why_stopped(config: RunConfig, store: RunStore) -> str | None:
    """Why the drift budget or the alarm lets no further round be played, under the config as it is now.

    What is sampled of the next round is named too: with `overlap: 1` it was before the policy was evaluated.
    """
    finished = store.finished_rounds()
    if not finished:
        return None
    reason = stop_reason(config, Control.from_dict(store.round(finished[-1]).state()["control"]))
    number, num_shards = len(finished) + 1, len(store.round(len(finished)).names("completions/"))
    if reason is None or not (config.overlap and num_shards):
        return reason
    return f"{reason}; round {number} is sampled already ({num_shards} shards), and a run that goes on uses it"
