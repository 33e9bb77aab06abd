"""Starting a local Ray where the machine is busy."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from engine_kit import left_of, small_config

from actors.session import ray_session
from online_dpo.config.loading import dump_config
from online_dpo.config.run import ClusterSection
from online_dpo.errors import UserError

SLOW = "The current node timed out during startup. This could happen because some of the raylet failed to startup."


@pytest.mark.parametrize(("errors", "num_attempts"), [([SLOW, SLOW], 3), ([SLOW] * 3, 3), (["no shared memory"], 1)])
def test_a_slow_start_is_tried_again_and_nothing_else(
    errors: list[str], num_attempts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts: list[Any] = []

    def init(**options: Any) -> None:
        attempts.append(options["address"])
        if len(attempts) <= len(errors):
            raise RuntimeError(errors[len(attempts) - 1])

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 4.0})
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    succeeded = False
    try:
        with ray_session(ClusterSection(), num_cpus_needed=2):
            succeeded = True
    except UserError as error:
        assert f"a local Ray could not be started (RuntimeError: {errors[-1]})" in str(error)
    assert (succeeded, attempts) == (len(errors) < num_attempts, ["local"] * num_attempts)


def children_named(process: psutil.Process, name: str) -> list[psutil.Process]:
    return [child for child in process.children(recursive=True) if name in child.name()]


def test_sigterm_while_ray_starts_is_an_interruption(tiny_model: Path, tmp_path: Path) -> None:
    """Would catch Ray's own handler, which exits with 15 and says nothing, and processes that outlive the run."""
    (tmp_path / "config.yaml").write_text(dump_config(small_config(tmp_path, tiny_model)))
    command = [sys.executable, "-m", "online_dpo.cli", "run", str(tmp_path / "config.yaml")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        driver = psutil.Process(process.pid)
        while not children_named(driver, "gcs_server"):
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.01)
        started = driver.children(recursive=True)
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=120)
    assert process.returncode == 130, output
    assert "interrupted; nothing was done yet: start it again with the same command" in output
    assert "Traceback" not in output
    assert left_of(started, 30.0) == []
