"""Plays the runs of a study with `online-dpo run`, which goes on with what was begun; what is finished is left out."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from plan import Run

ROOT = Path(__file__).parents[2]


def is_finished(run_dir: Path) -> bool:
    from online_dpo.commands.status import read_status

    if not (run_dir / "run.json").exists():
        return False
    status = read_status(run_dir)
    return bool(status["num_finished"] >= status["num_rounds"])


def play(runs: Sequence[Run], folder: Path, sources: Mapping[str, str], minutes: float) -> int:
    """Play what is not finished.

    Args:
        runs: of a study.
        folder: where the run directories are.
        sources: further overrides, by field: where the task's files are.
        minutes: after so many, no run is begun.

    Returns:
        How many are left.

    Raises:
        CalledProcessError: a run failed.
    """
    until = time.monotonic() + 60.0 * minutes
    wanted = [run for run in runs if not is_finished(folder / run.name)]
    for number, run in enumerate(wanted):
        if time.monotonic() > until:
            return len(wanted) - number
        fields = {"run.dir": str(folder), "run.name": run.name, **run.overrides, **sources}
        command = [sys.executable, "-m", "online_dpo.cli", "run", str(ROOT / run.task.config), "--quiet"]
        print(f"{run.name}, {number + 1} of {len(wanted)}", file=sys.stderr, flush=True)
        subprocess.run([*command, *(f"{field}={value}" for field, value in fields.items())], check=True)
    return 0
