"""A round's optimizer steps with their checkpoints, and the way back to the newest of them."""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping, Sequence
from typing import Any

from online_dpo.config import RunConfig
from online_dpo.stages import Event, Stages
from online_dpo.store import RoundStore, RunStore
from online_dpo.types import Pair

FINAL = "learner/final"
_PROGRESS = "progress.json"  # beside the learner's own files in every checkpoint


def train(
    config: RunConfig,
    stages: Stages,
    run_store: RunStore,
    index: int,
    pairs: Sequence[Pair],
) -> Generator[Event, None, dict[str, float]]:
    """Take the round's steps from the newest checkpoint on, and commit learner state and adapter.

    Returns (as the generator's value):
        The mean of each step metric over the round, interruptions or not; counts (`num_...`) as totals over all
        epochs, under `num_trained_...`.
    """
    store = run_store.round(index)
    if not store.has(FINAL):
        yield Event(kind="stage", round_index=index, data={"stage": "learning"})
        num_steps = stages.learner.begin_round(index, pairs)
        done, sums = _progress_so_far(store)
        for step in range(done, num_steps):
            figures = stages.learner.step(step)
            sums = {name: sums.get(name, 0.0) + value for name, value in figures.items()}
            yield Event(kind="step", round_index=index, data={"step": step, "num_steps": num_steps, **figures})
            every = config.learner.checkpoint_steps
            if every and (step + 1) % every == 0 and step + 1 < num_steps:
                name = f"learner/step-{step + 1:06d}"
                store.put_files(name, _checkpoint(stages, run_store, step + 1, sums))
                store.prune_checkpoints()
        store.put_files(FINAL, _checkpoint(stages, run_store, num_steps, sums))
    store.prune_checkpoints(keep=0)
    if not store.has("adapter"):
        store.put_files("adapter", stages.learner.policy(index + 1).files())
    progress = json.loads(store.get_files(FINAL)[_PROGRESS])
    figures = {"num_steps": progress["num_steps"]}
    for name, total in progress["sums"].items():
        if name.startswith("num_"):
            figures[f"num_trained_{name.removeprefix('num_')}"] = total
        else:
            figures[name] = total / progress["num_steps"]
    return figures


def restore_learner(stages: Stages, store: RunStore, index: int) -> None:
    """Bring the learner to the newest committed state before or in round `index`, the metrics file to its end.

    Mid-round checkpoints count: their steps' metrics are kept, because those steps are not taken again.
    """
    position: Mapping[str, Any] | None = store.round(index - 1).state()["metrics"] if index > 0 else None
    name = newest_checkpoint(store.round(index))
    files: dict[str, bytes] | None = None
    if name is not None:
        files = store.round(index).get_files(name)
        position = json.loads(files[_PROGRESS])["metrics"]
    elif index > 0:
        files = store.round(index - 1).get_files(FINAL)
    if files is not None:
        stages.learner.restore({file: content for file, content in files.items() if file != _PROGRESS})
    store.truncate_metrics(position)


def newest_checkpoint(store: RoundStore) -> str | None:
    """The commit to continue this round's learning from, None when it has to start."""
    if store.has(FINAL):
        return FINAL
    return max((name for name in store.names("learner/") if name.startswith("learner/step-")), default=None)


def _progress_so_far(store: RoundStore) -> tuple[int, dict[str, float]]:
    name = newest_checkpoint(store)
    if name is None:
        return 0, {}
    progress = json.loads(store.get_files(name)[_PROGRESS])
    return progress["num_steps"], progress["sums"]


def _checkpoint(stages: Stages, run_store: RunStore, num_steps: int, sums: Mapping[str, float]) -> dict[str, bytes]:
    progress = {"num_steps": num_steps, "sums": dict(sums), "metrics": run_store.metrics_position()}
    return {**stages.learner.checkpoint(), _PROGRESS: json.dumps(progress, sort_keys=True).encode()}
