"""Takes rounds off a run: they move to `set-aside/`, with their lines of the metrics.

What is to be done is written to `rewind.json` before anything moves, and that file is removed last. A rewind that is
killed on the way is therefore completed by whoever opens the run next: every step may be done twice.
"""

from __future__ import annotations

import json
from typing import Any

from online_dpo.errors import RunDirectoryError
from online_dpo.store.files import Files
from online_dpo.store.history import History, canonical_json, round_folder
from online_dpo.store.metrics_file import METRICS, MetricsFile
from online_dpo.store.round_store import RoundStore

PLAN = "rewind.json"
SET_ASIDE = "set-aside/"


def rewind(files: Files, history: History, metrics: MetricsFile, num_kept: int | None) -> str | None:
    """Take every round from `num_kept` on off the run; None = take none, and write `latest` again.

    Returns:
        The folder that the rounds were moved to, relative to the run directory; None where none was.

    Raises:
        RunDirectoryError: there are not so many rounds, or no round can be played after them.
        CorruptionError: what would stay is damaged.
    """
    completed = complete_rewind(files, history)
    if completed is not None and completed["num_kept"] == num_kept:
        return str(completed["folder"])
    if num_kept is None:
        num_sealed = history.num_sealed()
        history.check_first(num_sealed)
        history.point_to_last(num_sealed)
        return None
    _expect_can_keep(files, history, num_kept)
    history.check_first(num_kept)
    num_bytes = 0
    if num_kept:
        position = RoundStore(num_kept - 1, files, history).state()["metrics"]
        metrics.check(position)
        num_bytes = position["bytes"]
    taken = {key.split("/")[1] for key in files.keys(SET_ASIDE)}
    number = 1 + max((int(name) for name in taken if name.isdecimal()), default=0)
    folder = f"{SET_ASIDE}{number:05d}/"
    files.put(PLAN, canonical_json({"num_kept": num_kept, "metrics_bytes": num_bytes, "folder": folder}))
    complete_rewind(files, history)
    return folder


def complete_rewind(files: Files, history: History) -> dict[str, Any] | None:
    """Do what `rewind.json` asks for, or the rest of it, and return its content; None where there is no such file."""
    if not files.exists(PLAN):
        return None
    plan: dict[str, Any] = json.loads(files.get(PLAN))
    num_bytes, folder = plan["metrics_bytes"], plan["folder"]
    metrics = files.get(METRICS) if files.exists(METRICS) else b""
    if len(metrics) > num_bytes:
        files.put(folder + METRICS, metrics[num_bytes:])  # whole before the original is cut
        files.truncate(METRICS, num_bytes)
        files.sync(METRICS)
    history.point_to_last(plan["num_kept"])
    for index in history.on_disk():
        if index >= plan["num_kept"]:
            files.move(round_folder(index), folder + round_folder(index))
    files.delete(PLAN)
    return plan


def expect_no_rewind(files: Files) -> None:
    """Refuse to read a run whose rounds are just being moved.

    Raises:
        RunDirectoryError: a rewind is under way, or was killed.
    """
    if files.exists(PLAN):
        raise RunDirectoryError(
            f"{files.root} is being rewound, or its rewind was interrupted; if it was, `online-dpo rewind "
            f"{files.root}` completes it"
        )


def delete_set_aside(files: Files) -> None:
    """Delete what every rewind of the run set aside."""
    for key in files.keys(SET_ASIDE):
        files.delete(key)


def _expect_can_keep(files: Files, history: History, num_kept: int) -> None:
    """See whether a run can go on after its first `num_kept` rounds.

    Raises:
        RunDirectoryError: it has fewer finished rounds, or nothing to take off, or no optimizer state to go on from.
    """
    root, num_sealed = files.root, history.num_sealed()
    last = max([num_sealed - 1, *history.on_disk()])
    if not 0 <= num_kept <= last:
        raise RunDirectoryError(
            f"--round is {num_kept + 1} and {root} has "
            + (f"rounds 1 to {last + 1}; choose one of these" if last >= 0 else "no round yet; there is nothing to do")
        )
    if num_kept > num_sealed:
        raise RunDirectoryError(
            f"--round is {num_kept + 1} and round {num_sealed + 1} of {root} is not finished, so nothing after it can "
            f"be kept; give --round {num_sealed + 1} or less"
        )
    if num_kept and history.lacks_optimizer(num_kept - 1):
        adapter = root / round_folder(num_kept - 1) / "adapter"
        raise RunDirectoryError(
            f"--round is {num_kept + 1} and the optimizer state of round {num_kept} of {root} was not kept "
            f"(run.keep_optimizer: last), so the run cannot go on from there; play all rounds again with --round 1, or "
            f"start a new run that continues the policy, with model.adapter={adapter}"
        )
