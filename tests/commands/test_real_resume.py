"""SIGKILL and SIGTERM on the real engine: the same bytes as the whole run, and nothing committed done twice.

The killed run has a Ray of its own, of which nothing may be left. The others share the session's.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import ray
from engine_kit import left_of, small_config

from online_dpo.config.loading import dump_config

# The reference is refreshed after the second round; the learner is killed in that round after a step.
OVERRIDES = ["run.rounds=3", "reference.rounds=2", "learner.batch_pairs=2", "learner.epochs=4"]


@pytest.fixture(scope="module")
def address(ray_local: None) -> str:
    """Of the session's Ray."""
    return str(ray.get_runtime_context().gcs_address)


def start(folder: Path, address: str | None) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "online_dpo.cli", "run", str(folder / "config.yaml")]
    env = os.environ if address is None else os.environ | {"RAY_ADDRESS": address}  # the config stays as it is
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env)


def finish(folder: Path, address: str) -> None:
    process = start(folder, address)
    output, _ = process.communicate(timeout=500)
    assert process.returncode == 0, output


def kill_when(folder: Path, appears: str, absent: str) -> dict[Path, tuple[int, int]]:
    """SIGKILL the driver once the file `appears` is there, and see that all that it started ends, stopped or not.

    Returns:
        (inode, mtime) of every committed file at that moment.
    """
    run_dir, process = folder / "runs" / "run", start(folder, None)
    wait_for(process, run_dir / appears)
    started = psutil.Process(process.pid).children(recursive=True)
    [judge] = [child for child in started if "JudgeActor" in "".join(child.cmdline())]
    judge.suspend()
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    assert not (run_dir / absent).exists(), "the kill came too late to prove anything"
    assert len(started) > 6 and left_of(started, 30.0) == []
    return committed_in(run_dir)


def terminate_when(folder: Path, appears: str, absent: str, address: str) -> dict[Path, tuple[int, int]]:
    """SIGTERM: exit code 130, and the way to continue; returns as `kill_when`."""
    run_dir, process = folder / "runs" / "run", start(folder, address)
    wait_for(process, run_dir / appears)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 130, output
    assert f"online-dpo resume {run_dir}" in output
    assert "Traceback" not in output
    assert not (run_dir / absent).exists(), "the signal came too late to prove anything"
    return committed_in(run_dir)


def wait_for(process: subprocess.Popen[str], path: Path) -> None:
    deadline = time.monotonic() + 500
    while not path.exists():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.002)


def committed_in(run_dir: Path) -> dict[Path, tuple[int, int]]:
    committed = {}
    for checksums in run_dir.rglob("*.sha256"):
        for line in checksums.read_text().splitlines():
            path = checksums.parent / line.split("  ", 1)[1]
            committed[path] = (path.stat().st_ino, path.stat().st_mtime_ns)
    return committed


def untouched(committed: dict[Path, tuple[int, int]], *, except_pruned: str) -> bool:
    return all(
        (path.stat().st_ino, path.stat().st_mtime_ns) == before
        for path, before in committed.items()
        if except_pruned not in str(path)
    )


def data_files(run_dir: Path) -> dict[str, bytes]:
    """Everything that the run computed; what carries times, or positions in a file with times, is left out."""
    timed = ("metrics.jsonl", "state.json", "manifest.json", "latest", "progress.json", "lock")
    return {
        str(path.relative_to(run_dir)): path.read_bytes()
        for path in sorted(run_dir.rglob("*"))
        if path.is_file() and path.name not in timed and path.suffix != ".sha256" and path.name != "config.yaml"
        if path.relative_to(run_dir).parts[0] != "report"  # it says when it was written
    }


def test_sigkill_while_sampling_and_sigterm_while_learning(tmp_path: Path, tiny_model: Path, address: str) -> None:
    for name in ("whole", "killed"):
        config = small_config(tmp_path / name, tiny_model, OVERRIDES)
        (tmp_path / name / "config.yaml").write_text(dump_config(config))
    finish(tmp_path / "whole", address)
    killed = tmp_path / "killed"

    shard = "rounds/00000/completions/shard-{:05d}.sha256"
    committed = kill_when(killed, shard.format(0), shard.format(1))
    assert any("completions" in str(path) for path in committed)
    learner = "rounds/00001/learner/{}.sha256"
    second = terminate_when(killed, learner.format("step-000003"), learner.format("final"), address)
    assert untouched(committed, except_pruned="/learner/")
    assert any("00001/pairs" in str(path) for path in second)
    finish(killed, address)
    assert untouched(second, except_pruned="/learner/")

    whole, resumed = data_files(tmp_path / "whole" / "runs" / "run"), data_files(killed / "runs" / "run")
    assert "rounds/00002/adapter/adapter_model.safetensors" in whole
    assert "rounds/00001/reference/adapter_model.safetensors" in whole
    assert "rounds/00000/reference/adapter_model.safetensors" not in whole  # still the base model
    differing = [name for name in whole.keys() | resumed.keys() if whole.get(name) != resumed.get(name)]
    assert [name for name in differing if not name.endswith("run.json")] == []
