"""The command as a process: its exit codes, and that tests which call it in their own process see the same.

Exit code 3 is in `commands/test_stopped_run.py`, and 130 after a Ctrl-C in `commands/test_real_resume.py`.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import ray
import typer
from cli_kit import Outcome, called, online_dpo, write_inputs
from store_driver import tree

from online_dpo.commands import status
from online_dpo.errors import TrainingError

BROKEN = """
import os, signal, sys
from online_dpo import errors
from online_dpo.commands import status
def broken(*_):
    {body}
status.read_status = broken
sys.argv[0] = "online-dpo"
from online_dpo.cli import main
main()
"""
"""The command with a fault that a test chooses."""


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["judges"], 0),
        (["validate", "config.yaml"], 0),
        (["validate", "config.yaml", "learner.threads=0"], 2),
        (["status", "."], 2),
        (["statsu"], 2),
    ],
    ids=["judges", "valid", "config", "no run", "usage"],
)
def test_a_process_says_what_a_call_says(arguments: list[str], code: int, tmp_path: Path, tiny_model: Path) -> None:
    """Would catch a harness that is milder than a process: the tests of bad input all rest on it."""
    write_inputs(tmp_path, tiny_model)
    before = tree(tmp_path)
    done = online_dpo(*arguments, cwd=tmp_path)
    assert done.code == code and "Traceback" not in done.out + done.err
    assert bool(done.out) == (code == 0) and bool(done.err) == (code == 2)
    assert called(*arguments, cwd=tmp_path) == done
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    ("body", "code", "error"),
    [
        ("raise errors.TrainingError('the loss is not finite')", 1, "error: the loss is not finite\n"),
        ("os.kill(os.getpid(), signal.SIGTERM)", 130, ""),
        ("raise KeyboardInterrupt", 130, ""),
    ],
)
def test_how_a_process_ends_that_could_not_do_its_work(body: str, code: int, error: str, tmp_path: Path) -> None:
    program = [sys.executable, "-c", BROKEN.format(body=body)]
    assert online_dpo("status", "x", cwd=tmp_path, program=program) == Outcome(code, "", error)


def test_a_fault_of_ours_shows_its_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = online_dpo("status", "x", cwd=tmp_path, program=[sys.executable, "-c", BROKEN.format(body="1 / 0")])
    assert done.code == 1 and not done.out and "Traceback" in done.err
    assert done.err.endswith("ZeroDivisionError: division by zero\n")
    fail_with(monkeypatch, lambda: 1 / 0)
    again = called("status", "x", cwd=tmp_path)
    assert again.code == 1 and "Traceback" in again.err and again.err.splitlines()[-1] == done.err.splitlines()[-1]


def fail_with(monkeypatch: pytest.MonkeyPatch, act: Any) -> None:
    monkeypatch.setattr(status, "read_status", lambda _: act())


def complain() -> None:
    """Every way to print something that a user did not ask for."""
    logging.getLogger("some.library").warning("logged")
    warnings.warn("warned", UserWarning, stacklevel=1)
    typer.echo("echoed", err=True)
    raise TrainingError("and then it failed")


def test_a_call_catches_whatever_a_process_would_have_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    handler = logging.StreamHandler(sys.stderr)  # as libraries make them when they are imported
    logging.getLogger("another.library").addHandler(handler)
    kept = handler.stream

    def act() -> None:
        os.write(2, b"written\n")
        logging.getLogger("another.library").warning("handled")
        complain()

    fail_with(monkeypatch, act)
    done = called("status", "x", cwd=tmp_path)
    logging.getLogger("another.library").removeHandler(handler)
    assert done.code == 1 and not done.out and handler.stream is kept
    for words in ("written", "handled", "logged", "UserWarning: warned", "echoed"):
        assert words in done.err, words
    assert done.err.endswith("error: and then it failed\n")


def test_a_call_may_not_start_ray_and_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (Path.cwd(), dict(os.environ), sys.stdout, sys.stderr, sys.argv, signal.getsignal(signal.SIGTERM))

    def act() -> None:
        os.environ["LEFT"] = "behind"
        ray.init()

    fail_with(monkeypatch, act)
    done = called("status", "x", cwd=tmp_path)
    assert done.code == 1 and "may not start Ray" in done.err
    assert before == (Path.cwd(), dict(os.environ), sys.stdout, sys.stderr, sys.argv, signal.getsignal(signal.SIGTERM))
