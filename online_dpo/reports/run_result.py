"""What `online_dpo.run` returns: where the run lies, its rounds, and why it ended before its last one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from online_dpo.reports.results import EvaluationResult, RoundResult


@dataclass(frozen=True, slots=True, kw_only=True)
class Awaited:
    """Answers of people that a run needs to go on, and does not wait for (`wait: false`)."""

    num_questions: int
    """Questions that it waits for."""
    num_missing_votes: int
    """Votes that these questions still want, all together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """Where a run lies, and what came of it."""

    run_dir: Path
    """The run directory."""
    rounds: tuple[RoundResult, ...] = ()
    """Every finished round, in order, those of earlier processes included."""
    initial: Mapping[str, EvaluationResult] = field(default_factory=dict)
    """Evaluation set -> the initial policy on it."""
    stopped: str | None = None
    """Why the drift budget or the alarm ended it before its last round; None if neither did."""
    awaited: Awaited | None = None
    """The answers of people that it ended for, and goes on with once they are in; None if it did not."""
    failed_listeners: tuple[str, ...] = ()
    """A sentence for each listener that raised an exception and was told nothing more."""

    @property
    def adapter(self) -> Path:
        """The folder of the last finished round's policy, in PEFT's format.

        Raises:
            IndexError: no round is finished.
        """
        return self.run_dir / "rounds" / f"{self.rounds[-1].round:05d}" / "adapter"
