"""Weights & Biases."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any, Literal, get_args

from online_dpo.errors import ConfigError
from online_dpo.reports.trackers.tracker import Axis, SampleTable, TrackedRun, Tracker

Mode = Literal["online", "offline"]

PATIENCE_S = 15.0
"""How long the server may take to answer at the start, and at the end to receive what is left; `wandb sync` sends it
later. Less than a run waits for a tracker at its end."""


class Wandb(Tracker):
    """Sends a run to a project of Weights & Biases. With `mode: offline` it is written into the run directory, from
    where `wandb sync` sends it."""

    requires = "wandb"

    def __init__(
        self,
        project: str = "online-dpo",
        entity: str | None = None,
        name: str | None = None,
        group: str | None = None,
        tags: list[str] | None = None,
        mode: Mode | None = None,
    ) -> None:
        """Nothing is sent yet.

        Args:
            project: its name.
            entity: the user or team that has the project; None = wandb's own default.
            name: what the run is called there; None = as the run directory.
            group: of runs that are shown together.
            tags: of the run.
            mode: None = as WANDB_MODE says, or online.

        Raises:
            ConfigError: there is no such mode.
        """
        if mode is not None and mode not in get_args(Mode):
            raise ConfigError(f"mode is {mode}; it must be one of {', '.join(get_args(Mode))}")
        self._name = name
        self._options: dict[str, Any] = {"project": project, "entity": entity, "group": group}
        self._options |= {"tags": tags, "mode": mode}

    def start(self, run: TrackedRun) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # read by the import
        import wandb

        # It would print lines of its own, and ask for a key on the terminal of the run.
        wandb.setup(wandb.Settings(silent=True))
        settings = wandb.Settings(
            silent=True,
            console="off",
            disable_git=True,
            disable_code=True,
            x_save_requirements=False,
            x_disable_stats=True,
            # The process would wait at its exit, too.
            init_timeout=PATIENCE_S,
            finish_timeout=PATIENCE_S,
            finish_timeout_raises=True,
        )
        self._wandb = wandb
        self._run = wandb.init(
            **self._options,
            id=run.id,
            name=self._name or run.name,
            config=dict(run.config),
            dir=str(run.run_dir),
            resume="allow",
            reinit="create_new",  # the user's own run, if there is one, stays as it is
            settings=settings,
        )
        # Its own step counts calls, those of earlier processes too: an offline process does not know of them otherwise.
        # What figures stand over are two scales, optimizer steps and rounds.
        self._at = run.num_sent
        self._run.define_metric("round")
        self._run.define_metric("optimizer_step")
        self._run.define_metric("*", step_metric="round")
        self._run.define_metric("step/*", step_metric="optimizer_step")

    def log(self, figures: Mapping[str, float], axis: Axis, position: int) -> None:
        self._log({"optimizer_step" if axis == "step" else "round": position, **figures})

    def table(self, table: SampleTable, round_number: int) -> None:
        rows = [list(row) for row in table.rows]
        shown = self._wandb.Table(columns=list(table.columns), data=rows, allow_mixed_types=True)  # a score may be None
        self._log({"round": round_number, table.name: shown})

    def finish(self, summary: Mapping[str, Any]) -> None:
        self._run.summary.update(json.loads(json.dumps(summary)))
        self._run.finish(exit_code=0 if summary["ended"] in ("done", "stopped", "left") else 1)

    def _log(self, row: Mapping[str, Any]) -> None:
        self._run.log(dict(row), step=self._at)
        self._at += 1
