"""What a tracker is. A package offers one of its own as an entry point of the group `online_dpo.trackers`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Axis = Literal["step", "round"]
"""What a figure stands over: optimizer steps of the whole run, from 0; or rounds, where 0 is the initial policy."""

Cell = str | float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackedRun:
    """What a tracker is told when a process begins or continues a run."""

    name: str
    """The name of the run directory when the tracker was first told of it; from a rewind on with `number`, such as
    `reviews-2`."""
    number: int
    """1, and one more after each rewind."""
    id: str
    """Of the run in trackers: 16 letters and digits. It stays the same when a run is resumed, and is another one after
    a rewind, because what the rounds that were set aside sent cannot be taken back."""
    num_sent: int
    """Calls of `log` and `table` that earlier processes made under this id; 0 = the run is new to the tracker."""
    run_dir: Path
    """The run directory."""
    config: Mapping[str, Any]
    """The resolved config, every default written out. It has no secrets."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleTable:
    """Answers of a policy, for people."""

    name: str
    """`samples/` and the evaluation set, or `pairs`."""
    columns: tuple[str, ...]
    """Their titles."""
    rows: tuple[tuple[Cell, ...], ...]
    """A cell for each column: text of a model or a user, a score, or None."""


class Tracker:
    """Somewhere to send what happens in a run. Override any of the methods; an option of the config is an argument of
    the constructor.

    All methods are called on one thread that belongs to the tracker. An exception is told once, as a warning, and the
    run goes on; so it does where a call hangs. The constructor is called before anything starts, to see whether the
    options fit, so it should not connect to anything.
    """

    requires: str | None = None
    """A package that has to be installed beside ours: it is looked for before anything starts."""

    def start(self, run: TrackedRun) -> None:
        """Begin, or continue what an earlier process began.

        Args:
            run: what is tracked.
        """

    def log(self, figures: Mapping[str, float], axis: Axis, position: int) -> None:
        """Take figures that belong together. None is sent twice, whatever was killed and resumed.

        Args:
            figures: name -> finite number. Names are paths such as `step/loss` or `evaluation/heldout/kl_initial`.
            axis: what they stand over.
            position: where on it.
        """

    def table(self, table: SampleTable, round_number: int) -> None:
        """Take answers of a round's policy.

        Args:
            table: a few rows, the same prompts in every round.
            round_number: from 1; 0 = the initial policy.
        """

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Send what is left: this process does no more.

        Args:
            summary: `ended` (`done`, `stopped`, `left` to people, `interrupted` or `failed`), `num_rounds`, and the
                newest round's figures.
        """
