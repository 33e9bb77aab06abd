"""The run directory: what goes in comes out, one writer at a time, and what a user is told."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from store_driver import AMENDED, CONFIG, INFO, play, tree

from online_dpo.errors import CorruptionError, RunDirectoryError
from online_dpo.store.files import Files
from online_dpo.store.run_store import RunStore
from online_dpo.types import Verdict


def test_records_json_and_files_come_back_and_reads_are_checked(tmp_path: Path) -> None:
    verdict = Verdict(prompt_id="p0", first=0, second=1, probability=0.75)
    with RunStore.create(tmp_path / "run", config_yaml=CONFIG, info=INFO) as store:
        current = store.round(0)
        current.put_records("verdicts/shard-00001", [verdict])
        current.put_records("verdicts/shard-00000", [])
        current.put_files("adapter", {"adapter_config.json": b"{}"})
        with pytest.raises(ValueError, match="committed already"):
            current.put_files("adapter", {"adapter_config.json": b"[]"})
        with pytest.raises(ValueError, match="not JSON compliant"):
            current.put_json("evaluation/x", {"reward": float("nan")})
        with pytest.raises(ValueError, match="1 rounds are finished"):
            store.finish_round(0, {"cursor": 3})
            store.round(3)
        with pytest.raises(ValueError, match="the round is finished"):
            current.remove("adapter")
    with pytest.raises(ValueError, match="closed"):
        store.append_metrics({})
    with RunStore.read(tmp_path / "run") as reader:
        assert (reader.config_yaml, reader.info, reader.finished_rounds()) == (CONFIG, INFO, [0])
        current = reader.round(0)
        assert current.names("verdicts/") == ["verdicts/shard-00000", "verdicts/shard-00001"]
        assert current.get_records("verdicts/shard-00000", Verdict) == []
        assert current.get_records("verdicts/shard-00001", Verdict) == [verdict]
        assert current.get_files("adapter") == {"adapter_config.json": b"{}"}
        assert current.state() == {"cursor": 3}
        (tmp_path / "run/rounds/00000/state.json").write_text('{"cursor": 4}')
        with pytest.raises(CorruptionError, match=r"state\.json does not match"):
            current.state()
    for checksums in ("rounds/00000/adapter.sha256", "run.sha256", "latest"):  # a person can check without us
        file = tmp_path / "run" / checksums
        subprocess.run(["sha256sum", "--check", "--strict", "--quiet", file.name], cwd=file.parent, check=True)


def test_a_second_attempt_replaces_what_a_killed_one_left(tmp_path: Path) -> None:
    with RunStore.create(tmp_path / "run", config_yaml=CONFIG, info=INFO) as store:
        left = tmp_path / "run/rounds/00000/adapter/parts/old.safetensors"
        left.parent.mkdir(parents=True)
        left.write_bytes(b"never committed")
        store.round(0).put_files("adapter", {"adapter_config.json": b"{}"})
        store.round(0).put_json("state", {"metrics": "of the first attempt"})  # killed before the manifest
        store.finish_round(0, {"metrics": "of the second"})
        store.verify()
        assert store.round(0).get_files("adapter") == {"adapter_config.json": b"{}"}
        assert store.round(0).state() == {"metrics": "of the second"}


def test_metrics_are_cut_back_to_the_committed_position(tmp_path: Path) -> None:
    with RunStore.create(tmp_path / "run", config_yaml=CONFIG, info=INFO) as store:
        assert store.metrics() == [] and store.metrics_position()["bytes"] == 0
        store.append_metrics({"loss": 0.5})
        position = store.metrics_position()
        store.append_metrics({"loss": 0.25})
        with (store.path / "metrics.jsonl").open("ab") as file:
            file.write(b'{"los')  # a line that was cut by a kill
        assert store.metrics() == [{"loss": 0.5}, {"loss": 0.25}]
        store.truncate_metrics(position)
        assert (store.path / "metrics.jsonl").read_bytes() == b'{"loss": 0.5}\n'
        assert store.metrics_position() == position
        store.truncate_metrics(None)
        assert store.metrics() == []


def test_records_of_work_that_is_not_done_again_stay(tmp_path: Path) -> None:
    """Would catch a damaged line that is kept, and one before the position that is kept twice."""
    with RunStore.create(tmp_path / "run", config_yaml=CONFIG, info=INFO) as store:
        records = [{"kind": "check", "n": n} for n in range(4)]
        store.append_metrics(records[0])
        position = store.metrics_position()
        for record in (records[1], {"kind": "step"}, {"n": 9}, records[2]):
            store.append_metrics(record)
        with (store.path / "metrics.jsonl").open("ab") as file:
            file.write(b'not a record\n[1]\n{"kind": "check", "n"')
        for _ in range(2):  # of a second process that is killed at once
            store.truncate_metrics(position, keep=("check",))
            assert store.metrics() == records[:3]
        store.append_metrics(records[3])
        assert store.metrics() == records
        store.check_metrics(position)


@pytest.mark.parametrize("between", ["run.sha256", "latest"])
def test_a_reader_is_not_confused_by_the_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, between: str) -> None:
    play(tmp_path, {}, num_rounds=1)
    get, writes = Files.get, []

    def get_then_write(files: Files, key: str) -> bytes:
        data = get(files, key)
        if key == between and not files.writable and not writes:
            writes.append(key)
            play(tmp_path, {})  # amends the config and finishes round 1 ...
            with RunStore.open(tmp_path) as store:
                store.round(2).put_json("evaluation/heldout", {})  # ... and goes on with round 2
        return data

    monkeypatch.setattr(Files, "get", get_then_write)
    with RunStore.read(tmp_path) as reader:
        assert writes == [between]
        assert (reader.config_yaml, reader.finished_rounds()) == (AMENDED, [0, 1])


def test_a_second_process_is_refused_and_a_dead_one_is_not_waited_for(tmp_path: Path) -> None:
    RunStore.create(tmp_path / "run", config_yaml=CONFIG, info=INFO).close()
    holding = (
        "import sys; from pathlib import Path; from online_dpo.store.run_store import RunStore\n"
        "store = RunStore.open(Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", holding, str(tmp_path / "run")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(
            RunDirectoryError, match=rf"run is in use by process {holder.pid} on .*; wait until it ends"
        ):
            RunStore.open(tmp_path / "run")
        RunStore.read(tmp_path / "run").verify()
        holder.send_signal(signal.SIGKILL)
    with RunStore.open(tmp_path / "run"), pytest.raises(RunDirectoryError, match=f"in use by process {os.getpid()} "):
        RunStore.open(tmp_path / "run")


def test_folders_that_are_no_run_are_left_alone(tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match=r"is not a run directory: it has no run\.json"):
        RunStore.open(tmp_path / "none")
    (tmp_path / "config.yaml").write_text("mine")
    for attempt in (lambda: RunStore.open(tmp_path), lambda: RunStore.create(tmp_path, config_yaml=CONFIG, info={})):
        with pytest.raises(RunDirectoryError):
            attempt()
    assert tree(tmp_path) == {"config.yaml": b"mine"} and not (tmp_path / "lock").exists()
    with pytest.raises(RunDirectoryError, match=r"config\.yaml is a file where a folder must be"):
        RunStore.create(tmp_path / "config.yaml" / "run", config_yaml=CONFIG, info={})
    path = tmp_path / "run"
    RunStore.create(path, config_yaml=CONFIG, info={}).close()
    with pytest.raises(RunDirectoryError, match="holds a run already; continue it with `online-dpo resume"):
        RunStore.create(path, config_yaml=CONFIG, info={})
    (path / "run.json").write_text(json.dumps({"format_version": 1}))
    with pytest.raises(RunDirectoryError, match="has format version 1 and this program reads version 3; use"):
        RunStore.open(path)


class SmallDisk:
    """A disk of its own: a small tmpfs for root, as in CI; for others the same refusals, made by hand."""

    def __init__(self, path: Path, patch: pytest.MonkeyPatch) -> None:
        self.path = path
        self.mounted = os.geteuid() == 0
        self._patch = patch
        path.mkdir()
        if self.mounted:
            subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96k", "tmpfs", str(path)], check=True)
        else:
            self._fill_after(60_000)

    def enlarge(self) -> None:
        self._remount("size=1m") if self.mounted else self._patch.undo()

    def make_read_only(self) -> None:
        if self.mounted:
            self._remount("ro")
        else:
            for file in [*self.path.rglob("*"), self.path]:
                file.chmod(0o555 if file.is_dir() else 0o444)

    def close(self) -> None:
        if self.mounted:
            subprocess.run(["umount", str(self.path)], check=True)
        else:
            for file in [self.path, *self.path.rglob("*")]:
                file.chmod(0o755)

    def _remount(self, option: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{option}", str(self.path)], check=True)

    def _fill_after(self, num_bytes: int) -> None:
        write, rest = os.write, [num_bytes]

        def limited(descriptor: int, data: bytes) -> int:
            rest[0] -= len(data)
            if rest[0] < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return write(descriptor, data)

        self._patch.setattr(os, "write", limited)


@pytest.fixture
def small_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SmallDisk]:
    disk = SmallDisk(tmp_path / "disk", monkeypatch)
    yield disk
    disk.close()


def test_a_full_disk_keeps_what_was_committed(small_disk: SmallDisk) -> None:
    path, contents = small_disk.path / "run", {"weights.safetensors": b"w" * 9000, "config.json": b"{}"}
    with RunStore.create(path, config_yaml=CONFIG, info=INFO) as store:
        committed = []
        with pytest.raises(
            RunDirectoryError, match=r"No space left on device; what was committed before is kept: free"
        ):
            for step in range(100):
                name = f"learner/step-{step:06d}"
                store.round(0).put_files(name, contents)
                committed.append(name)
    assert len(committed) > 1 and not list(path.rglob(".partial-*"))
    with RunStore.read(path) as reader:
        reader.verify()
    small_disk.enlarge()
    with RunStore.open(path) as store:
        assert store.round(0).names() == committed
        store.round(0).put_files(name, contents)
        store.verify()
        assert store.round(0).get_files(name) == contents


def test_a_read_only_disk_can_be_read(small_disk: SmallDisk) -> None:
    path = small_disk.path / "run"
    RunStore.create(path, config_yaml=CONFIG, info=INFO).close()
    small_disk.make_read_only()
    for attempt in (
        lambda: RunStore.open(path),
        lambda: RunStore.create(path.with_name("other"), config_yaml=CONFIG, info=INFO),
    ):
        with pytest.raises(
            RunDirectoryError, match=rf"{small_disk.path}/.* cannot be used: .*; give this user the right"
        ):
            attempt()
    with RunStore.read(path) as reader:
        reader.verify()
        assert reader.info == INFO


def test_status_needs_no_heavy_import(tmp_path: Path) -> None:
    play(tmp_path / "run", {})
    looking = (
        "import sys; from pathlib import Path; from online_dpo.store.run_store import RunStore\n"
        "store = RunStore.read(Path(sys.argv[1])); store.metrics(); store.round(1).state(); store.round(2).names()\n"
        "print(sorted({'pyarrow', 'torch', 'numpy', 'ray'} & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", looking, str(tmp_path / "run")], capture_output=True, text=True, check=True
    )
    assert result.stdout == "[]\n"
