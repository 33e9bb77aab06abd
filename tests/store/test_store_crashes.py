"""A run directory that is killed, or loses power, at any instant: at one of each kind, or at every one."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from crashing_disk import EVERY, Crash, CrashingDisk, instants
from store_driver import AMENDED, CONFIG, Promised, play, tree

from online_dpo.store.run_store import RunStore


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, bytes], Promised]:
    """The files of a whole run, and every commit that it made on the way, as bytes."""
    path, commits = tmp_path_factory.mktemp("uninterrupted") / "run", {}

    class Everything(dict):
        def __setitem__(self, key, value):  # type: ignore[no-untyped-def]
            commits[key] = value
            super().__setitem__(key, value)

    play(path, Everything())
    return tree(path), commits


@pytest.fixture
def memory() -> Iterator[Path]:
    """A folder in memory where there is one: the crashes make some thousand run directories."""
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if os.access(shared, os.W_OK) else None) as folder:
        yield Path(folder)


@EVERY
@pytest.mark.parametrize("power_cut", [False, True], ids=["kill", "power cut"])
def test_a_crash_at_any_instant_keeps_commits_whole_and_the_resumed_run_identical(
    memory: Path, uninterrupted: tuple[dict[str, bytes], Promised], power_cut: bool, every: bool
) -> None:
    expected, commits = uninterrupted
    with CrashingDisk(memory, crash_at=None, power_cut=power_cut) as disk:
        play(memory / "counted", {})
    assert disk.num_changes > 200
    for crash_at in instants(disk.kinds, every=every):
        path = memory / f"{crash_at}"
        promised: Promised = {}
        # The second crash hits the recovery from the first one.
        for limit in (crash_at, crash_at % 11):
            try:
                with CrashingDisk(path.parent, crash_at=limit, power_cut=power_cut):
                    play(path, promised)
            except Crash:
                check_after_crash(path, promised, commits)
        play(path, {})
        assert tree(path) == expected, f"crash at change {crash_at}"
        assert not [parent for parent, folders, files in os.walk(path) if not folders + files]
        shutil.rmtree(path)


def check_after_crash(path: Path, promised: Promised, commits: Promised) -> None:
    if not RunStore.exists(path):
        assert not promised
        return
    with RunStore.read(path) as store:
        assert store.config_yaml in (CONFIG, AMENDED)
        store.verify()
        rounds = {index: store.round(index) for index in range(len(store.finished_rounds()) + 1)}
        found = {(index, name): rounds[index].get_files(name) for index in rounds for name in rounds[index].names()}
    # A state is only promised once its round is finished; until then it is rewritten.
    assert {key: commits[key] for key in found} == found
    assert set(promised) <= set(found)
