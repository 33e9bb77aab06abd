"""A run directory with flipped bytes, cut and missing files: what is noticed, and whether the remedy works."""

from __future__ import annotations

import os
import re
import shlex
from contextlib import nullcontext
from pathlib import Path

import pytest
from store_driver import examine, play, play_round, tree

from online_dpo.cli import app
from online_dpo.errors import CorruptionError, RunDirectoryError
from online_dpo.store.run_store import RunStore


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """No power fails here, so fsync would only take time."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """Two finished rounds (the first one pruned), a third under way, metrics beyond the committed position."""
    path = tmp_path / "run"
    play(path, {})
    with RunStore.open(path) as store:
        store.append_metrics({"round": 2})
        play_round(store.round(2), {}, until="learner/step-000002")
    return path


def test_every_flip_and_cut_of_every_file_is_noticed(damaged: Path) -> None:
    files = tree(damaged)
    assert len(files) > 30 and "rounds/00002/learner/step-000002/state/optimizer.safetensors" in files
    examine(damaged)
    with RunStore.read(damaged) as store:
        num_committed = store.round(1).state()["metrics"]["bytes"]
    for name, data in files.items():
        end = num_committed if name == "metrics.jsonl" else len(data)
        places = sorted({*range(0, end, max(1, end // 12)), end - 1})
        changed = [data[:i] + bytes([data[i] ^ (1 << i % 8)]) + data[i + 1 :] for i in places]
        changed += [data[:i] for i in places]
        changed += [data[: match.end()] for match in re.finditer(rb"\n", data[: end - 1])]  # whole lines are gone
        for content in changed:
            (damaged / name).write_bytes(content)
            with pytest.raises(RunDirectoryError) as caught:
                examine(damaged)
            message = str(caught.value)
            assert str(damaged) in message and ("; restore it" in message or "format version" in message)
            if not name.endswith((".sha256", "run.json", "manifest.json", "latest")):
                assert isinstance(caught.value, CorruptionError) and f"{damaged / name} " in message
        (damaged / name).write_bytes(data)
    examine(damaged)


def test_a_manifest_that_latest_does_not_vouch_for_yet_is_checked_too(tmp_path: Path) -> None:
    play(tmp_path, {}, num_rounds=1)
    before = (tmp_path / "latest").read_bytes()
    play(tmp_path, {}, num_rounds=2, prune=False)
    manifest = tmp_path / "rounds/00001/manifest.json"
    data = manifest.read_bytes()
    flipped = [data[:i] + bytes([data[i] ^ 1]) + data[i + 1 :] for i in range(0, len(data), 7)]
    for content in [*flipped, data[:-1], data]:
        (tmp_path / "latest").write_bytes(before)  # as after a kill between the manifest and `latest`
        manifest.write_bytes(content)
        with nullcontext() if content == data else pytest.raises(CorruptionError):
            examine(tmp_path)


def test_every_deletion_is_noticed_but_that_of_a_checksum_in_the_unfinished_round(damaged: Path) -> None:
    for name, data in tree(damaged).items():
        (damaged / name).unlink()
        if re.fullmatch(r"rounds/00002/.*\.sha256", name):
            commit = name.removeprefix("rounds/00002/").removesuffix(".sha256")
            with RunStore.open(damaged) as store:
                store.verify()
                assert not store.round(2).has(commit)
                with pytest.raises(CorruptionError, match=re.escape(f"{damaged / name} is missing")):
                    store.round(2).get_files(commit)
        else:
            with pytest.raises(RunDirectoryError, match=re.escape(Path(name).name)):
                examine(damaged)
        (damaged / name).parent.mkdir(parents=True, exist_ok=True)
        (damaged / name).write_bytes(data)
    examine(damaged)


def test_damage_is_named_where_it_is_also_if_the_round_before_has_no_manifest(damaged: Path) -> None:
    commit = damaged / "rounds/00002/prompts.sha256"
    with RunStore.open(damaged) as store:
        commit.unlink()
        (damaged / "rounds/00001/manifest.json").unlink()  # while the run is under way: opening would have refused it
        with pytest.raises(CorruptionError) as error:
            store.round(2).get_files("prompts")
    sentence = str(error.value)
    assert sentence.startswith(f"{commit} is missing; restore it from a backup; the round before it is damaged as well")
    assert f"{damaged / 'rounds/00001/manifest.json'} is missing" in sentence


def test_only_removed_optimizer_state_may_be_absent(tmp_path: Path) -> None:
    play(tmp_path, {}, prune=False)
    final = tmp_path / "rounds/00000/learner/final"
    files = {file: file.read_bytes() for file in final.iterdir()}
    (final / "schedule.json").unlink()
    with pytest.raises(CorruptionError, match=r"00000/learner/final/schedule\.json is missing"):
        examine(tmp_path)
    # As left by a removal that was killed after the checksum file and one more.
    final.with_suffix(".sha256").unlink()
    examine(tmp_path)
    (final / "optimizer.safetensors").write_bytes(b"other")
    with pytest.raises(CorruptionError, match=r"00000/learner/final/optimizer\.safetensors does not match"):
        examine(tmp_path)
    (final / "optimizer.safetensors").write_bytes(files[final / "optimizer.safetensors"])
    with RunStore.open(tmp_path) as store:
        store.prune_optimizer()
        assert not final.exists() and (tmp_path / "rounds/00001/learner/final").is_dir()
        store.verify()
    (tmp_path / "rounds/00001/learner/final.sha256").unlink()
    with pytest.raises(CorruptionError, match=r"00001/learner/final\.sha256 is missing"):
        examine(tmp_path)


@pytest.mark.parametrize(
    "victim",
    [
        "latest",
        "rounds/00000/prompts.parquet",
        "rounds/00001/adapter/adapter_model.safetensors",
        "rounds/00001/manifest.json",
        "rounds/00001/state.json",
        "rounds/00002/completions/shard-00000.parquet",
        "rounds/00002/learner/step-000002/state/optimizer.safetensors",
    ],
)
@pytest.mark.parametrize("damage", ["flip", "delete"])
def test_the_remedy_in_the_message_works(tmp_path: Path, victim: str, damage: str) -> None:
    play(tmp_path / "whole", {}, num_rounds=3, prune=False)
    path = tmp_path / "damaged run"  # the command must survive a blank
    play(path, {}, num_rounds=2, prune=False)
    with RunStore.open(path) as store:
        play_round(store.round(2), {}, until="learner/step-000002")
    data = bytearray((path / victim).read_bytes())
    data[len(data) // 3] ^= 4
    (path / victim).write_bytes(data) if damage == "flip" else (path / victim).unlink()
    with pytest.raises(CorruptionError) as caught:
        examine(path)
    if (victim, damage) == ("rounds/00001/manifest.json", "flip"):
        # At first `latest` is accused, being the witness against the manifest; the remedy then finds the culprit.
        with pytest.raises(CorruptionError) as found:
            follow_remedy(caught.value)
        caught = found
    follow_remedy(caught.value)
    examine(path)
    play(path, {}, num_rounds=3, prune=False)
    kept = {name: data for name, data in tree(path).items() if not name.startswith("set-aside/")}
    assert kept == tree(tmp_path / "whole")


def follow_remedy(error: CorruptionError) -> None:
    command = re.search(r"`online-dpo (rewind .*?)`", str(error))
    assert command is not None, error
    app(shlex.split(command.group(1)), standalone_mode=False)


def test_without_the_optimizer_state_the_remedy_is_the_adapter(damaged: Path) -> None:
    file = damaged / "rounds/00001/adapter.sha256"
    file.write_bytes(file.read_bytes()[1:])
    with pytest.raises(CorruptionError) as caught:
        examine(damaged)
    adapter = re.search(r"model\.adapter=(\S+)", str(caught.value))
    assert adapter is not None and adapter.group(1) == str(damaged / "rounds/00000/adapter")
    assert "rm -rf" not in str(caught.value)
