"""TensorBoard: event files in the run directory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from online_dpo.reports.trackers.tracker import Axis, Cell, SampleTable, TrackedRun, Tracker


class TensorBoard(Tracker):
    """Writes to the folder `tensorboard` of the run directory, and to `tensorboard-2` after a first rewind."""

    requires = "tensorboard"

    def start(self, run: TrackedRun) -> None:
        from torch.utils.tensorboard import SummaryWriter  # not before it is wanted: it imports torch

        ending = "" if run.number == 1 else f"-{run.number}"
        self._writer = SummaryWriter(str(run.run_dir / f"tensorboard{ending}"))
        if run.num_sent == 0:
            from omegaconf import OmegaConf

            text = OmegaConf.to_yaml(OmegaConf.create(dict(run.config)))
            self._writer.add_text("config", "".join(f"    {line}\n" for line in text.splitlines()))

    def log(self, figures: Mapping[str, float], axis: Axis, position: int) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, position)

    def table(self, table: SampleTable, round_number: int) -> None:
        self._writer.add_text(table.name, as_markdown(table), round_number)

    def finish(self, summary: Mapping[str, Any]) -> None:
        self._writer.close()


def as_markdown(table: SampleTable) -> str:
    """A table as Markdown, in which no text of a model is markup."""
    lines = [table.columns, tuple("---" for _ in table.columns), *table.rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(value: Cell) -> str:
    if not isinstance(value, str):
        return "" if value is None else f"{value:.4g}"
    if value == "---":
        return value
    # Whatever could be Markdown or HTML is written as a number, which both show as the character that it stands for.
    return "".join(c if c.isalnum() or c in " .,?" else f"&#{ord(c)};" for c in " ".join(value.split()))
