"""A cluster made by `ray start`, with a token and a second node on this machine."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from engine_kit import small_config

from online_dpo.config.loading import dump_config

TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "for-this-test-only-0123456789abcdef"}
RAY = str(Path(sys.executable).parent / "ray")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Two nodes of two logical CPUs each: the three actors of a run do not fit on one. Ends only what it started."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    log = (tmp_path_factory.mktemp("ray") / "log").open("w")
    common = ["--num-cpus=2", "--block", "--disable-usage-stats", "--object-store-memory=100000000"]
    head = [RAY, "start", "--head", f"--port={address.split(':')[1]}", "--include-dashboard=false", *common]
    started: list[subprocess.Popen[bytes]] = []
    for command in (head, [RAY, "start", f"--address={address}", *common]):
        started.append(
            subprocess.Popen(command, env=os.environ | TOKEN, stdout=log, stderr=log, start_new_session=True)
        )
        wait_for_nodes(address, len(started))
    yield address
    nodes = [psutil.Process(process.pid) for process in started]
    for part in [part for node in nodes for part in (*node.children(recursive=True), node)]:
        with suppress(psutil.NoSuchProcess):
            part.kill()  # a node that is asked to end takes half a minute
    for process in started:
        process.wait(timeout=60)


def wait_for_nodes(address: str, count: int) -> None:
    script = (
        "import ray, sys; ray.init(address=sys.argv[1], log_to_driver=False, logging_level='ERROR'); "
        "sys.exit(sum(n['Alive'] for n in ray.nodes()) != int(sys.argv[2]))"
    )
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        command = [sys.executable, "-c", script, address, str(count)]
        if subprocess.run(command, env=os.environ | TOKEN, capture_output=True).returncode == 0:
            return
    raise AssertionError(f"the cluster at {address} did not reach {count} nodes")


def run_command(folder: Path, address: str, model: Path, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    overrides = ["run.rounds=1", f"cluster.address={address}"]
    config = small_config(folder, model, overrides)
    (folder / "config.yaml").write_text(dump_config(config))
    command = [sys.executable, "-m", "online_dpo.cli", "run", str(folder / "config.yaml")]
    return subprocess.run(command, env=os.environ | env, capture_output=True, text=True, timeout=500)


def test_a_run_spreads_over_two_nodes_and_leaves_the_cluster_alone(
    cluster: str, tiny_model: Path, tmp_path: Path
) -> None:
    done = run_command(tmp_path, cluster, tiny_model, TOKEN)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs/run/rounds/00000/manifest.json").exists()
    wait_for_nodes(cluster, 2)


def test_a_missing_token_is_one_sentence(cluster: str, tiny_model: Path, tmp_path: Path) -> None:
    done = run_command(tmp_path, cluster, tiny_model, {"RAY_AUTH_MODE": "disabled"})
    assert done.returncode == 2
    assert "RAY_AUTH_TOKEN" in done.stderr and cluster in done.stderr
    assert "Traceback" not in done.stderr
