"""Trackio: a local database of all runs, or a Hugging Face Space."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from online_dpo.reports.trackers.tracker import Axis, SampleTable, TrackedRun, Tracker


class Trackio(Tracker):
    """Sends a run to a project of Trackio: into its folder on this machine (TRACKIO_DIR), or to a `space_id`."""

    requires = "trackio"

    def __init__(
        self,
        project: str = "online-dpo",
        space_id: str | None = None,
        name: str | None = None,
        group: str | None = None,
        private: bool | None = None,
    ) -> None:
        """Nothing is sent yet.

        Args:
            project: its name.
            space_id: a Hugging Face Space that shows the project, such as `my-team/runs`.
            name: what the run is called there; None = as the run directory, with the end of its id.
            group: of runs that are shown together.
            private: whether a Space that is made for it is private.
        """
        self._name = name
        self._options: dict[str, Any] = {"project": project, "space_id": space_id, "group": group, "private": private}

    def start(self, run: TrackedRun) -> None:
        import trackio

        for module in (trackio, trackio.deploy, trackio.run, trackio.utils):
            setattr(module, "print", _say_nothing)  # noqa: B010, mypy; it has no switch for what it prints
        self._trackio = trackio
        self._run = trackio.init(
            **self._options,
            # Runs are continued by their name, and two run directories may have the same.
            name=f"{self._name or run.name}-{run.id[-6:]}",
            config=dict(run.config),
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def log(self, figures: Mapping[str, float], axis: Axis, position: int) -> None:
        self._run.log(dict(figures), step=position)

    def table(self, table: SampleTable, round_number: int) -> None:
        rows = [list(row) for row in table.rows]
        self._run.log({table.name: self._trackio.Table(columns=list(table.columns), data=rows)}, step=round_number)

    def finish(self, summary: Mapping[str, Any]) -> None:
        self._run.finish()


def _say_nothing(*_: object, **__: object) -> None:
    """In place of `print`."""
