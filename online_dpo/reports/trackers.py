"""Trackers: where the records of a run are sent besides `metrics.jsonl`.

A tracker of your own is a class with `track` and `close`, a line in `TRACKERS`, and its switch in the section `logging`
of the config.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from online_dpo.config.run import LoggingSection


class Tracker(Protocol):
    """Somewhere to send the numbers of a run."""

    def track(self, record: Mapping[str, Any], step: int) -> None:
        """Take one record.

        Args:
            record: as in `metrics.jsonl`; `kind` and `round` say what it is about.
            step: where it stands: the optimizer step of the whole run for records of kind `step`, the round for others.
        """
        ...

    def close(self) -> None:
        """Send what is left."""
        ...


class TensorBoard:
    """Every number as a scalar, in the folder `tensorboard` of the run directory."""

    def __init__(self, run_dir: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter  # not before it is wanted: it imports torch

        self._writer = SummaryWriter(str(run_dir / "tensorboard"))

    def track(self, record: Mapping[str, Any], step: int) -> None:
        for name, value in numbers_of(record):
            self._writer.add_scalar(f"{record['kind']}/{name}", value, step)

    def close(self) -> None:
        self._writer.close()


TRACKERS: Mapping[str, Callable[[Path], Tracker]] = {"tensorboard": TensorBoard}
"""Field of `logging` -> what it switches on, given the run directory."""


def make_trackers(section: LoggingSection, run_dir: Path) -> list[Tracker]:
    """The trackers that the config switches on."""
    return [make(run_dir) for name, make in TRACKERS.items() if getattr(section, name)]


def numbers_of(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """`(path of keys, number)` of every number in a record; an estimate gives its value and its interval's ends."""
    for key, value in record.items():
        if isinstance(value, Mapping):
            yield from numbers_of(value, f"{prefix}{key}/")
        elif key in ("gain", "win_rate") and value is not None:
            for ending, number in zip(("", "_low", "_high"), value, strict=True):
                yield f"{prefix}{key}{ending}", float(number)
        elif isinstance(value, int | float) and not isinstance(value, bool) and key not in ("time", "round"):
            yield f"{prefix}{key}", float(value)
