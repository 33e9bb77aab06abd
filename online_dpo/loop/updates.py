"""A round's optimizer steps with their checkpoints, and the way back to the newest of them."""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from online_dpo.config.run import RunConfig
from online_dpo.errors import TrainingError
from online_dpo.loop.calls import Calls
from online_dpo.loop.stages import INCIDENT, Event, LearnerStage, Stages
from online_dpo.loop.weight_sync import CHECKS
from online_dpo.store.round_store import RoundStore
from online_dpo.store.run_store import RunStore
from online_dpo.types import Items

FINAL = "learner/final"
MAX_SKIPPED = 3
"""Steps in a row whose values are not finite, after which a run stops: more would only burn pairs."""

_PROGRESS = "progress.json"  # beside the learner's own files in every checkpoint

ENDS = ("chosen_log_ratio", "rejected_log_ratio")
"""Step metrics whose last value is reported beside their mean: do the chosen answers end up less likely?"""


@dataclass(slots=True)
class Tally:
    """What a round's steps have reported so far; JSON, so that an interrupted round reports the same."""

    num_steps: int = 0  # taken or skipped
    num_skipped_steps: int = 0
    skipped_in_a_row: int = 0
    sums: dict[str, list[float]] = field(default_factory=dict)  # figure -> its sum, and the steps that reported it
    ends: dict[str, float] = field(default_factory=dict)  # of the last step that was taken

    def add(self, figures: Mapping[str, Any]) -> None:
        """Count one step. A skipped one has nothing to average."""
        self.num_steps += 1
        if figures.get("skipped"):
            self.num_skipped_steps += 1
            self.skipped_in_a_row += 1
            return
        self.skipped_in_a_row = 0
        for name, value in figures.items():
            total, count = self.sums.get(name, (0.0, 0))
            self.sums[name] = [total + value, count + 1]
        self.ends |= {f"{name}_end": figures[name] for name in ENDS if name in figures}

    def summary(self) -> dict[str, float]:
        """The mean of each figure over the steps that reported it; counts (`num_...`) as totals, `num_trained_...`; and
        the last step's log-ratios, as `chosen_log_ratio_end` and `rejected_log_ratio_end`."""
        found: dict[str, float] = {"num_steps": self.num_steps, "num_skipped_steps": self.num_skipped_steps}
        for name, (total, count) in self.sums.items():
            if name.startswith("num_"):
                found[f"num_trained_{name.removeprefix('num_')}"] = total
            elif name != "skipped":
                found[name] = total / count
        return {**found, **self.ends}


def train(
    config: RunConfig,
    calls: Calls,
    run_store: RunStore,
    index: int,
    items: Items,
    beta_factor: float,
) -> Generator[Event, None, dict[str, float]]:
    """Take the round's steps from the newest checkpoint on, and commit learner state and adapter.

    Returns (as the generator's value):
        `Tally.summary` of the round, interruptions or not.

    Raises:
        TrainingError: too many steps in a row were skipped; what was good before them is committed.
    """
    store, learner = run_store.round(index), calls.stages.learner
    if not store.has(FINAL):
        yield Event(kind="stage", round_index=index, data={"stage": "learning"})
        num_steps = learner.begin_round(index, items, beta_factor)
        tally = _tally_so_far(store)
        for step in range(tally.num_steps, num_steps):
            figures = yield from calls.learner("step", step)
            tally.add(figures)
            yield Event(kind="step", round_index=index, data={"step": step, "num_steps": num_steps, **figures})
            stops = tally.skipped_in_a_row == MAX_SKIPPED
            if stops:
                tally.skipped_in_a_row = 0  # whoever resumes has decided to go on
            every = config.learner.checkpoint_steps
            if stops or (every and (step + 1) % every == 0 and step + 1 < num_steps):
                name = f"learner/step-{step + 1:06d}"
                store.put_files(name, _checkpoint(learner, run_store, tally))
                store.prune_checkpoints()
            if stops:
                raise TrainingError(
                    f"round {index + 1}, step {step + 1} of {num_steps}: the {figures['bad_value']} was not finite for "
                    f"prompts {', '.join(figures['bad_ids'])}, and {MAX_SKIPPED} steps in a row were skipped for such "
                    f"reasons; the weights before them are committed. Look at these answers, or start a new run with "
                    f"a lower learner.lr; resuming goes on after the skipped steps"
                )
        store.put_files(FINAL, _checkpoint(learner, run_store, tally))
    store.prune_checkpoints(keep=0)
    if not store.has("adapter"):
        store.put_files("adapter", learner.policy(index + 1).files())
    return _tally_so_far(store).summary()


def restore_learner(stages: Stages, store: RunStore, index: int) -> None:
    """Bring the learner to the newest committed state before or in round `index`, the metrics file to its end.

    Mid-round checkpoints count: their steps' metrics are kept, because those steps are not taken again. So are the
    checks of the generators' weights, whose samples may be committed and are then not checked again, and what happened
    to actors.
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
    store.truncate_metrics(position, keep=(*CHECKS, INCIDENT))


def newest_checkpoint(store: RoundStore) -> str | None:
    """The commit to continue this round's learning from, None when it has to start."""
    if store.has(FINAL):
        return FINAL
    return max((name for name in store.names("learner/") if name.startswith("learner/step-")), default=None)


def _tally_so_far(store: RoundStore) -> Tally:
    name = newest_checkpoint(store)
    return Tally() if name is None else Tally(**json.loads(store.get_files(name)[_PROGRESS])["tally"])


def _checkpoint(learner: LearnerStage, run_store: RunStore, tally: Tally) -> dict[str, bytes]:
    progress = {"tally": asdict(tally), "metrics": run_store.metrics_position()}
    return {**learner.checkpoint(), _PROGRESS: json.dumps(progress, sort_keys=True).encode()}
