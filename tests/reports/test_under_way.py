"""`online-dpo status`: where a run stands, by what its directory holds."""

from __future__ import annotations

import codecs
import io
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cli_kit import called
from loop_runs import Kill, Run
from rich.console import Console
from screen_kit import Screen

from online_dpo.commands.status import read_status, show_status
from online_dpo.reports.under_way import overview, time_left
from online_dpo.store.run_store import RunStore

HOSTILE = "\x1b[2J[/red] \u202e[bold]"


def text_of(status: dict[str, Any]) -> str:
    out = io.StringIO()
    show_status(status, Console(file=out, width=160), as_json=False)
    return out.getvalue()


def test_time_left_by_hand() -> None:
    """Five rounds, of which each second one is evaluated; two are finished."""
    rounds = [
        {"seconds": {"sampling": 10.0, "learning": 20.0}},
        {"seconds": {"sampling": 12.0, "learning": 22.0, "evaluating": 7.0}},
    ]
    later: dict[str, Any] = {"num_rounds": 5, "evaluated_every": 2, "since": 100.0}
    assert time_left(rounds, **later, now=110.0) == (32.0 - 10.0) + (32.0 + 7.0) + (32.0 + 7.0)  # the last one, always
    assert time_left(rounds, **later, now=500.0) == 0.0 + 39.0 + 39.0
    assert time_left(rounds, **{**later, "evaluated_every": None}, now=100.0) == 96.0
    assert time_left([], **later, now=110.0) is None


def test_the_stage_of_a_killed_run_and_who_works_on_it(tmp_path: Path) -> None:
    run = Run.of(tmp_path, run__rounds=3)
    events = run.go_on().events
    seen = []
    for kill_at, event in enumerate(events):
        if event.round_index != 1 or event.kind not in ("stage", "step", "evaluated"):
            continue
        killed = run.at(tmp_path / f"killed-{kill_at}")
        with pytest.raises(Kill):
            killed.go_on(kill_at=kill_at + 1)
        status = read_status(killed.path)
        assert (status["is_running"], status["left_s"]) == (False, None)
        seen.append((event.data.get("stage", event.kind), status["stage"]))
    assert seen == [
        ("sampling", "sampling"),
        ("reference", "learning"),  # the kill comes with the next event, once its work is committed
        ("learning", "learning"),
        ("step", "learning"),
        ("step", "evaluating"),
        ("evaluating", "evaluating"),
        ("evaluated", "evaluating"),
    ]
    with RunStore.open(killed.path):
        lines = list(overview(read_status(killed.path), width=100))
    assert lines[1].startswith("round 2 is under way, evaluating, about 0:0") and lines[1].endswith(" left")
    lines = list(overview(read_status(killed.path), width=100))
    assert lines[1] == f"nothing works on it; continue with: online-dpo resume {killed.path}"
    assert lines[2].startswith("reward ") and "KL 0." in lines[2] and "▁█" in lines[2]  # the initial policy and round 1


def test_before_the_first_round_ends_there_is_no_table_without_rows(tmp_path: Path) -> None:
    run = Run.of(tmp_path)
    done = run.go_on()
    whole = read_status(run.path)
    kill_at = next(i for i, event in enumerate(done.events) if event.round_index == 0 and event.kind == "step")
    killed = run.at(tmp_path / "killed")
    with pytest.raises(Kill):
        killed.go_on(kill_at=kill_at)
    status = read_status(killed.path)
    assert status["initial"] and not status["rounds"]
    titles = ("optimizer steps, means", "samples trained on", "seconds")
    assert all(title in text_of(whole) and title not in text_of(status) for title in titles)
    assert "start" in text_of(status)


def test_what_is_shown_cannot_be_markup_or_move_the_cursor(tmp_path: Path) -> None:
    run = Run.of(tmp_path)
    run.go_on()
    status = read_status(run.path)
    status["rounds"][0]["warnings"] = [HOSTILE] * 2
    status["rounds"][1]["warnings"] = ["an end", "another end"]
    status["incidents"] = [{"round": 1, "what": HOSTILE}]
    text = text_of(status)
    assert text.count(r"\x1b[2J[/red] \u202e[bold]") == 1 + 2 + 2 and "\x1b" not in text
    assert "\n4 warnings, the newest 3:\n  round 1: " in text and "\n1 incident:\n" in text
    assert status.keys() > {"run_dir", "num_rounds", "num_finished", "initial", "rounds", "yield", "current", "stopped"}


def test_watching_ends_with_the_run(tmp_path: Path) -> None:
    run = Run.of(tmp_path)
    run.go_on()
    refused = called("status", run.path, "--watch", cwd=tmp_path)
    assert refused.code == 2 and refused.err.startswith("error: --watch needs a terminal")
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "online_dpo", "status", str(run.path), "--watch"]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "60", "LINES": "20"}
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment) as process:
        os.close(theirs)
        screen, decoder = Screen(), codecs.getincrementaldecoder("utf-8")()
        while True:
            try:
                data = os.read(ours, 65536)
            except OSError:
                break
            screen.feed(decoder.decode(data))
    os.close(ours)
    assert process.returncode == 0 and screen.is_cursor_shown
    assert screen.shown[-1].startswith("reward ") and "KL" in screen.shown[-1]
