"""Rounds that are taken off a run: nothing is lost, the rest is whole, and the run goes on, whenever it was killed."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

import pytest
from crashing_disk import Crash, CrashingDisk
from loop_runs import Run, comparable
from store_driver import examine, play, play_round, tree

from online_dpo.errors import CorruptionError, RunDirectoryError
from online_dpo.store.run_store import RunStore


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three finished rounds with all their optimizer state, a fourth under way, metrics beyond the position."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    path = tmp_path / "run"
    play(path, {}, num_rounds=3, prune=False)
    with RunStore.open(path) as store:
        store.append_metrics({"round": 3})
        play_round(store.round(3), {}, until="learner/step-000002")
    return path


def split(path: Path) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """The files of the run, and those that were set aside the first time."""
    files = tree(path)
    aside = "set-aside/00001/"
    return (
        {name: data for name, data in files.items() if not name.startswith("set-aside/")},
        {name.removeprefix(aside): data for name, data in files.items() if name.startswith(aside)},
    )


def committed(path: Path) -> dict[str, bytes]:
    """The files of the run, without what a process may leave that was killed while it wrote or took back a plan."""
    files = {name: data for name, data in tree(path).items() if ".partial-" not in name}
    if "rewind.sha256" not in files:
        files.pop("rewind.json", None)
    return files


@pytest.mark.parametrize("num_kept", [0, 1, 2, 3])
def test_what_is_taken_off_is_kept_and_the_run_goes_on(num_kept: int, run: Path, tmp_path: Path) -> None:
    before = tree(run)
    assert RunStore.rewind(run, num_kept=num_kept) == run / "set-aside/00001"
    kept, taken = split(run)
    moved = {n: d for n, d in before.items() if n.startswith("rounds/") and int(n.split("/")[1]) >= num_kept}
    assert {name: data for name, data in taken.items() if name != "metrics.jsonl"} == moved and moved
    assert kept.get("metrics.jsonl", b"") + taken["metrics.jsonl"] == before["metrics.jsonl"]
    examine(run)
    play(run, {}, num_rounds=3, prune=False)
    play(tmp_path / "whole", {}, num_rounds=3, prune=False)
    assert split(run)[0] == tree(tmp_path / "whole")
    assert RunStore.rewind(run, num_kept=2) == run / "set-aside/00002"
    assert RunStore.rewind(run, num_kept=None, delete=True) is None
    assert not (run / "set-aside").exists() and RunStore.read(run).finished_rounds() == [0, 1]


@pytest.mark.parametrize("power_cut", [False, True], ids=["kill", "power cut"])
def test_a_rewind_that_crashes_at_any_instant_is_completed(power_cut: bool, run: Path, tmp_path: Path) -> None:
    """Would catch metrics that are cut before they are copied, and a run that a reader takes for whole halfway."""
    counted = shutil.copytree(run, tmp_path / "counted")
    with CrashingDisk(counted, crash_at=None, power_cut=power_cut) as disk:
        RunStore.rewind(counted, num_kept=1)
    expected, before, left = tree(counted), tree(run), []
    for crash_at in range(disk.num_changes):
        path = shutil.copytree(run, tmp_path / "crashed")
        for limit in (crash_at, crash_at % 7):  # the second crash hits the completion of the first
            with suppress(Crash), CrashingDisk(path, crash_at=limit, power_cut=power_cut):
                if committed(path) != expected:  # else it is done, and there is nothing more to take off
                    RunStore.rewind(path, num_kept=1)
        if (path / "rewind.sha256").exists():
            with pytest.raises(RunDirectoryError, match=r"`online-dpo rewind .*` completes it"):
                RunStore.read(path)
        else:
            assert committed(path) in (before, expected)
        if crash_at % 2 and committed(path) != expected:
            RunStore.rewind(path, num_kept=1)
        else:
            RunStore.open(path).close()  # as `online-dpo run` does
        left.append(tree(path))
        assert left[-1] in (before, expected), f"crash at change {crash_at}"
        shutil.rmtree(path)
    assert before in left and left[-1] == expected


@pytest.mark.parametrize("damage", ["cut", "flipped", "forged", "checksum"])
def test_a_damaged_plan_is_never_followed(damage: str, run: Path) -> None:
    """Would catch a plan that takes off other rounds than it was told to, or moves them out of the run directory."""
    plan, before = run / "rewind.json", tree(run)
    with CrashingDisk(run, crash_at=8, power_cut=False), pytest.raises(Crash):
        RunStore.rewind(run, num_kept=2)
    assert (run / "rewind.sha256").exists()
    match damage:
        case "cut":
            plan.write_bytes(plan.read_bytes()[:-9])
        case "flipped":
            plan.write_bytes(plan.read_bytes().replace(b'"num_kept": 2', b'"num_kept": 0'))
        case "forged":
            plan.write_bytes(plan.read_bytes().replace(b"set-aside/00001/", b"../../elsewhere/"))
        case "checksum":
            (run / "rewind.sha256").write_bytes(b"nothing\n")
    left = tree(run)
    for attempt in (lambda: RunStore.open(run), lambda: RunStore.rewind(run, num_kept=None)):
        with pytest.raises(CorruptionError, match=r"rewind.*online-dpo rewind .* --round N`"):
            attempt()
        assert tree(run) == left
    assert RunStore.rewind(run, num_kept=2) is not None  # said anew
    kept = {name for name in before if not name.startswith("rounds/") or int(name.split("/")[1]) < 2}
    assert {name for name in tree(run) if not name.startswith("set-aside/")} == kept
    examine(run)


@pytest.mark.parametrize("num_rounds", [0, 1])
def test_the_unfinished_round_alone(num_rounds: int, tmp_path: Path) -> None:
    """`--round 1` of a run without a finished round. The optimizer state of earlier rounds is not needed for it."""
    path = tmp_path / "run"
    play(path, {}, num_rounds=num_rounds)
    with RunStore.open(path) as store:
        play_round(store.round(num_rounds), {}, until="learner/step-000001")
    assert RunStore.rewind(path, num_kept=num_rounds) == path / "set-aside/00001"
    examine(path)
    assert (path / f"set-aside/00001/rounds/{num_rounds:05d}/prompts.parquet").is_file()
    with pytest.raises(RunDirectoryError, match=r"--round is \d and .* has (no round yet|rounds 1 to 1)"):
        RunStore.rewind(path, num_kept=num_rounds)


def test_what_makes_no_sense_is_refused_and_changes_nothing(run: Path) -> None:
    with RunStore.open(run) as store:
        with pytest.raises(RunDirectoryError, match="is in use by"):
            RunStore.rewind(run, num_kept=1)
        store.prune_optimizer()
    before = tree(run)
    with pytest.raises(RunDirectoryError, match=r"--round is 6 and .*run has rounds 1 to 4; choose one of these"):
        RunStore.rewind(run, num_kept=5)
    with pytest.raises(RunDirectoryError, match=r"optimizer state of round 2 .* with --round 1, or start a new run"):
        RunStore.rewind(run, num_kept=2)
    assert tree(run) == before
    (run / "rounds/00000/prompts.parquet").write_bytes(b"")
    with pytest.raises(CorruptionError, match=r"00000/prompts\.parquet does not match .*rewind \S+run --round 1`"):
        RunStore.rewind(run, num_kept=3)


def test_a_lost_manifest_in_the_middle(run: Path) -> None:
    """Nothing after the gap can stay, and what comes before it can."""
    (run / "rounds/00001/manifest.json").unlink()
    with pytest.raises(RunDirectoryError, match=r"round 2 of .* is not finished, .*; give --round 2 or less"):
        RunStore.rewind(run, num_kept=2)
    (run / "latest").unlink()
    with pytest.raises(CorruptionError, match=r"latest is missing; .*rewind \S+run --round 2`"):
        examine(run)
    RunStore.rewind(run, num_kept=1)
    examine(run)


@pytest.mark.parametrize("num_kept", [0, 1, 2])
def test_a_run_that_goes_on_after_a_rewind_equals_the_uninterrupted_one(num_kept: int, tmp_path: Path) -> None:
    """Would catch anything of the rounds taken off that still decides about the new ones."""
    run = Run.of(tmp_path, run__rounds=3, run__keep_optimizer="all", reference={"type": "every", "rounds": 2})
    run.go_on()
    expected = comparable(run.path)
    RunStore.rewind(run.path, num_kept=num_kept)
    run.go_on()
    found = {name: data for name, data in comparable(run.path).items() if not name.startswith("set-aside/")}
    assert found == expected
