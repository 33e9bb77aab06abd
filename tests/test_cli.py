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
from config_kit import BASE
from inprocess_kit import call_main
from store_driver import tree

from online_dpo.commands import status
from online_dpo.commands.terminal.completion import complete_override
from online_dpo.config.loading import load_config
from online_dpo.errors import ConfigError, TrainingError
from online_dpo.version import __version__

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
        ("os.kill(os.getpid(), signal.SIGTERM)", 130, "\ninterrupted\n"),
        ("raise KeyboardInterrupt", 130, ""),
    ],
)
def test_how_a_process_ends_that_could_not_do_its_work(body: str, code: int, error: str, tmp_path: Path) -> None:
    program = [sys.executable, "-c", BROKEN.format(body=body)]
    assert online_dpo("status", "x", cwd=tmp_path, program=program) == Outcome(code, "", error)


STARTED = "import sys; sys.path.insert(0, sys.argv.pop(1)); from online_dpo.__main__ import main; main()"
SWALLOWS = """
import os, time
try:
    os.kill(os.getpid(), {number})
    time.sleep(20)
except BaseException:
    raise ImportError("this module is broken")
"""
"""A module that turns an interruption into an error of its own, as extension modules do."""


@pytest.mark.parametrize(
    ("module", "number", "arguments"),
    [
        ("typer", signal.SIGINT, ["--help"]),
        ("typer", signal.SIGTERM, ["--help"]),
        ("transformers", signal.SIGTERM, ["validate", "config.yaml", "--deep"]),
    ],
)
def test_a_signal_during_an_import(
    module: str, number: signal.Signals, arguments: list[str], tmp_path: Path, tiny_model: Path
) -> None:
    write_inputs(tmp_path, tiny_model)
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / f"{module}.py").write_text(SWALLOWS.format(number=int(number)))
    done = online_dpo(*arguments, cwd=tmp_path, program=[sys.executable, "-c", STARTED, tmp_path / "first"])
    assert (done.code, done.err) == (130, "\ninterrupted\n")


def test_a_field_as_an_option_is_told_how_it_is_written(tmp_path: Path) -> None:
    done = called("run", "config.yaml", "--learner.lr=1e-4", cwd=tmp_path)
    assert done.code == 2 and "No such option: --learner.lr" in done.err
    assert done.err.endswith("A field of the config is set without dashes: learner.lr=VALUE\n")


def test_version(tmp_path: Path) -> None:
    assert called("--version", cwd=tmp_path) == Outcome(0, f"online-dpo {__version__}\n", "")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("val", {"validate"}),
        ("run x.yaml lea", {"learner."}),
        ("run x.yaml learner.lo", {"learner.lora."}),
        ("resume runs/x learner.lora.", {f"learner.lora.{name}=" for name in ("r", "alpha", "dropout", "targets")}),
        ("run x.yaml model.dtype=", {"model.dtype=float32", "model.dtype=bfloat16"}),
        ("run x.yaml learner.compile=t", {"learner.compile=true"}),
    ],
)
def test_completion(words: str, expected: set[str], tmp_path: Path) -> None:
    """What bash asks the command, word for word."""
    asked = {
        "_ONLINE_DPO_COMPLETE": "complete_bash",
        "COMP_WORDS": f"online-dpo {words}",
        "COMP_CWORD": str(len(words.split())),
    }
    code, out, err = call_main([], cwd=tmp_path, environment={**os.environ, **asked}, program="online-dpo")
    assert (code, set(out.split()), err) == (0, expected, "")


def test_every_completed_field_is_one() -> None:
    fields = {name for section in complete_override("") for name in complete_override(section)}
    assert len(fields) > 80 and "learner.lr=" in fields
    for field in fields:
        if field.startswith(("judge.", "objective.", "reference.")):  # BASE has one member of these unions
            continue
        try:
            load_config(BASE, [f"{field.rstrip('=.')}={{no: field}}"])
        except ConfigError as error:
            assert f"{field.rstrip('=.')} is not a known key" not in str(error)


def test_validate_says_what_it_found_and_what_it_did_not_check(tmp_path: Path, tiny_model: Path) -> None:
    write_inputs(tmp_path, tiny_model)
    done = called("validate", "config.yaml", cwd=tmp_path)
    starts = [line.split(":")[0] for line in done.out.splitlines()]
    assert starts == ["config", "model.path", "data", "judges", "not checked"] and done.code == 0
    assert "rows after the first few" in done.out.splitlines()[-1] and "hub" not in done.out
    remote = called("validate", "config.yaml", "model.path=org/name", cwd=tmp_path)
    assert "not checked: what the hub holds (org/name), the values of weights" in remote.out
    full = called("validate", "config.yaml", "--show-config", cwd=tmp_path)
    (tmp_path / "full.yaml").write_text(full.out)
    assert load_config(tmp_path / "full.yaml") == load_config(tmp_path / "config.yaml")


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
