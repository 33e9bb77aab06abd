"""Damage to finished rounds: all of it is found, what no later round reads can be accepted, and nothing else can."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from crashing_disk import Crash, CrashingDisk
from store_driver import play, tree

from online_dpo.errors import CorruptionError, RunDirectoryError
from online_dpo.store.run_store import RunStore

ANSWERS = "rounds/00000/completions/shard-00000.parquet"
OLD_ADAPTER = "rounds/00000/adapter/adapter_model.safetensors"
LAST_ADAPTER = "rounds/00002/adapter/adapter_model.safetensors"
SUMMARY = "rounds/00000/evaluation/heldout.v2.json"
Play = Callable[[int], None]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three finished rounds with all their optimizer state."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    play(tmp_path / "run", {}, num_rounds=3, prune=False)
    return tmp_path / "run"


def flip(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


def verify(run: Path) -> None:
    with RunStore.read(run) as store:
        store.verify()


def test_all_damage_is_listed_with_what_depends_on_it(run: Path) -> None:
    for key in (ANSWERS, OLD_ADAPTER, LAST_ADAPTER):
        flip(run / key)
    (run / SUMMARY).unlink()
    with RunStore.read(run) as store:
        found = {damage.key: damage for damage in store.damages()}
        assert set(found) == {ANSWERS, OLD_ADAPTER, LAST_ADAPTER, SUMMARY}
        assert {key for key, damage in found.items() if damage.is_acceptable} == {ANSWERS, OLD_ADAPTER}
        assert found[SUMMARY].problem == "is missing" and found[SUMMARY].found is None
        assert "rounds 2 to 3 came after it" in found[SUMMARY].consequence
        assert "round 4 would begin with it" in found[LAST_ADAPTER].consequence
        # All adapters of this driver are the same bytes, so the one of round 2 can take the place of the others.
        assert store.copies(found[LAST_ADAPTER]) == ["rounds/00001/adapter/adapter_model.safetensors"]


def test_accepted_damage_is_let_pass_until_the_file_changes_again(run: Path) -> None:
    flip(run / ANSWERS)
    with pytest.raises(CorruptionError, match=f"--accept {ANSWERS}"):
        verify(run)
    with RunStore.open(run) as store:
        store.accept([ANSWERS])
    record = json.loads((run / "accepted.json").read_bytes())
    assert set(record) == {ANSWERS} and record[ANSWERS]["recorded"] != record[ANSWERS]["found"]
    verify(run)
    play(run, {}, num_rounds=4, prune=False)  # it goes on
    verify(run)
    flip(run / ANSWERS)  # as it was committed
    verify(run)
    (run / ANSWERS).write_bytes(b"other")
    with pytest.raises(CorruptionError):
        verify(run)


def test_what_a_later_round_reads_cannot_be_accepted(run: Path) -> None:
    flip(run / LAST_ADAPTER)
    flip(run / ANSWERS)
    before = tree(run)
    with RunStore.open(run) as store:
        with pytest.raises(RunDirectoryError, match="round 4 would begin with it; restore it from a backup"):
            store.accept([ANSWERS, LAST_ADAPTER])
        with pytest.raises(RunDirectoryError, match="no damaged file"):
            store.accept(["rounds/00001/state.json"])
    assert tree(run) == before


def test_a_policy_that_the_reference_needs_cannot_be_accepted(run: Path) -> None:
    with RunStore.open(run) as store:
        store.append_metrics({"round": 3})
        state = {"metrics": store.metrics_position(), "reference_versions": [1, 4]}
        store.finish_round(3, state)
    flip(run / OLD_ADAPTER)
    with RunStore.open(run) as store, pytest.raises(RunDirectoryError, match="came after it"):
        store.accept([OLD_ADAPTER])


def test_accepted_damage_counts_again_where_a_rewind_would_need_the_file(run: Path) -> None:
    flip(run / OLD_ADAPTER)
    with RunStore.open(run) as store:
        store.accept([OLD_ADAPTER])
    with pytest.raises(CorruptionError, match="adapter_model"):
        RunStore.rewind(run, num_kept=1)
    verify(run)


def test_a_damaged_record_of_what_was_accepted_lets_nothing_pass(run: Path) -> None:
    flip(run / ANSWERS)
    with RunStore.open(run) as store:
        store.accept([ANSWERS])
    flip(run / "accepted.json")
    with pytest.raises(CorruptionError, match="accepted"):
        verify(run)


@pytest.mark.parametrize("power_cut", [False, True], ids=["kill", "power cut"])
def test_setting_a_first_round_aside_may_crash_at_any_instant(power_cut: bool, tmp_path: Path) -> None:
    """Would catch a run that is neither here nor there, and an answer that is in no folder any more."""
    start = tmp_path / "start"
    with RunStore.create(start, config_yaml="a: 1\n", info={}) as store:
        store.append_metrics({"round": 0})
        store.round(0).put_json("draw", {"n": 1})
    (start / "tensorboard").mkdir()
    (start / "tensorboard/events").write_bytes(b"curves")
    before = tree(start)
    counted = shutil.copytree(start, tmp_path / "counted")
    with CrashingDisk(counted, crash_at=None, power_cut=power_cut) as all_of_it, RunStore.open(counted) as store:
        assert store.set_aside() == counted / "set-aside/00001"
    assert tree(counted / "set-aside/00001") == before and not RunStore.exists(counted)
    verify(counted / "set-aside/00001")  # it is a run, and could be continued
    for crash_at in range(all_of_it.num_changes):
        path = shutil.copytree(start, tmp_path / "crashed")
        disk = CrashingDisk(path, crash_at=crash_at, power_cut=power_cut)
        with pytest.raises(Crash), disk, RunStore.open(path) as store:
            store.set_aside()
        if RunStore.exists(path):
            with RunStore.open(path) as store:
                store.set_aside()
        with RunStore.create(path, config_yaml="a: 2\n", info={}) as store:
            store.verify()
            assert store.finished_rounds() == [] and store.round(0).names() == []
        files = tree(path)
        for name, data in before.items():
            assert any(key.endswith(f"/{name}") and files[key] == data for key in files), (crash_at, name)
        shutil.rmtree(path)
