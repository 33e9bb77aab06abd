"""Takes rounds off a run: they move to `set-aside/`, with their lines of the metrics.

What is to be done is committed as `rewind.json` before anything moves, and taken back last. A rewind that is killed on
the way is therefore completed by whoever opens the run next: every step may be done twice. Like every commit it has a
checksum, so a damaged one is never followed.
"""

from __future__ import annotations

import json
from typing import Any

from online_dpo.errors import CorruptionError, RunDirectoryError
from online_dpo.store.commits import CHECKSUM, Commits
from online_dpo.store.files import Files
from online_dpo.store.history import History, canonical_json, round_folder
from online_dpo.store.metrics_file import METRICS, MetricsFile
from online_dpo.store.round_store import RoundStore

PLAN, PLAN_FILE = "rewind", "rewind.json"
SET_ASIDE = "set-aside/"


def rewind(files: Files, history: History, metrics: MetricsFile, num_kept: int | None) -> str | None:
    """Take every round from `num_kept` on off the run; None = take none, and write `latest` again.

    Returns:
        The folder that the rounds were moved to, relative to the run directory; None where none was.

    Raises:
        RunDirectoryError: there are not so many rounds, or no round can be played after them.
        CorruptionError: what would stay is damaged.
    """
    try:
        completed = complete_rewind(files, history)
    except CorruptionError:
        if num_kept is None:
            raise
        _discard_plan(files)  # the user has said anew what to do
        completed = None
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
    folder = next_folder(files)
    _move(files, history, {"num_kept": num_kept, "metrics_bytes": num_bytes, "folder": folder})
    return folder


def set_rounds_aside(files: Files, history: History, folder: str) -> None:
    """Move all rounds and all metrics to a folder."""
    _move(files, history, {"num_kept": 0, "metrics_bytes": 0, "folder": folder})


def next_folder(files: Files) -> str:
    """Where the next rounds are set aside; relative to the run directory."""
    taken = {key.split("/")[1] for key in files.keys(SET_ASIDE)}
    number = 1 + max((int(name) for name in taken if name.isdecimal()), default=0)
    return f"{SET_ASIDE}{number:05d}/"


def _move(files: Files, history: History, plan: dict[str, Any]) -> None:
    _plans(files).put(PLAN, {PLAN_FILE: canonical_json(plan)})
    complete_rewind(files, history)


def complete_rewind(files: Files, history: History) -> dict[str, Any] | None:
    """Do what the committed plan asks for, or the rest of it, and return its content; None where there is no plan.

    Raises:
        CorruptionError: the plan is damaged.
    """
    if not _plans(files).has(PLAN):
        if files.exists(PLAN_FILE):
            files.delete(PLAN_FILE)  # of a plan that a kill kept from being committed, or that was being taken back
        return None
    plan: dict[str, Any] = json.loads(_plans(files).get(PLAN)[PLAN_FILE])
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
    _plans(files).remove(PLAN)
    return plan


def expect_no_rewind(files: Files) -> None:
    """Refuse to read a run whose rounds are just being moved.

    Raises:
        RunDirectoryError: a rewind is under way, or was killed.
    """
    if _plans(files).has(PLAN):
        raise RunDirectoryError(
            f"{files.root} is being rewound, or its rewind was interrupted; if it was, `online-dpo rewind "
            f"{files.root}` completes it"
        )


def delete_set_aside(files: Files) -> None:
    """Delete what every rewind of the run set aside."""
    for key in files.keys(SET_ASIDE):
        files.delete(key)


def _plans(files: Files) -> Commits:
    """Where a plan is committed."""
    return Commits(
        files,
        "",
        lambda: (
            f"restore it from a backup, or say anew from which round on to play again, with `online-dpo rewind "
            f"{files.root} --round N`"
        ),
    )


def _discard_plan(files: Files) -> None:
    """Take back a plan that cannot be read: its checksum first, as for every commit."""
    for key in (f"{PLAN}{CHECKSUM}", PLAN_FILE):
        if files.exists(key):
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
