"""The displays as processes: on real pseudo-terminals, into pipes, and how they end."""

from __future__ import annotations

import codecs
import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_kit import called
from screen_kit import Screen

from online_dpo import interruption
from online_dpo.reports.listening import EVENTS

HERE = Path(__file__).parent


class Shown:
    """`shown_run.py` on a pseudo-terminal of its own."""

    def __init__(self, folder: Path, *options: str, seconds: float = 0.03, **environment: str) -> None:
        folder.mkdir()
        self.folder, (ours, theirs) = folder, pty.openpty()
        command = [sys.executable, str(HERE.parent / "kits" / "shown_run.py"), str(folder), str(seconds), *options]
        self.process = subprocess.Popen(
            command, stdin=theirs, stdout=theirs, stderr=theirs, env=_environment(environment), start_new_session=True
        )
        os.close(theirs)
        self.terminal = ours
        self.screen, self.text = Screen(), ""
        self.decoder = codecs.getincrementaldecoder("utf-8")()

    def read(self) -> Iterator[Screen]:
        """The screen after each piece of output, until the process has ended."""
        while True:
            try:
                data = os.read(self.terminal, 65536)
            except OSError:  # as Linux says that nobody has the other end any more
                data = b""
            if not data:
                break
            text = self.decoder.decode(data)  # a read may end inside a character
            self.text += text
            self.screen.feed(text)
            yield self.screen
        os.close(self.terminal)
        self.code = self.process.wait()


def _environment(more: dict[str, str]) -> dict[str, str]:
    path = os.pathsep.join([str(HERE.parent / "kits"), str(HERE.parents[1])])
    kept = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES")}
    return {**kept, "PYTHONPATH": path, "TERM": "xterm-256color", "COLUMNS": "100", "LINES": "40", **more}


@pytest.fixture(scope="module")
def terminals(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Shown]]:
    """All at once: most of a process is its imports."""
    folder = tmp_path_factory.mktemp("terminals")
    found = {
        "whole": Shown(folder / "whole", "hostile", "torn"),
        "fails": Shown(folder / "fails", "fails", NO_COLOR="1"),
        "dumb": Shown(folder / "dumb", TERM="dumb"),
        "ctrl-c": Shown(folder / "ctrl-c", seconds=0.3),
        "sigterm": Shown(folder / "sigterm", seconds=0.3),
        "asks": Shown(folder / "asks", "asks"),
    }
    yield found
    for shown in found.values():
        if shown.process.poll() is None:
            shown.process.kill()


def test_a_display_on_a_terminal(terminals: dict[str, Shown]) -> None:
    """Whole rounds with hostile warnings and with others who print: every line is whole, and stays above the panel."""
    shown, panels = terminals["whole"], 0
    for screen in shown.read():
        if any(line.startswith("run   ") for line in screen.shown):
            panels += 1
            assert sum(line.startswith("run   ") for line in screen.shown) == 1, screen.shown
            assert sum(line.startswith("round ") and "/2   " in line for line in screen.shown) <= 1, screen.shown
    assert panels > 3 and shown.code == 0 and shown.screen.is_cursor_shown
    lines = shown.screen.shown
    assert lines[-1].startswith("run directory: ") and not any(line.startswith("run   ") for line in lines)
    assert [line for line in lines if line.startswith(("printed", "complained"))] == [
        said for _ in range(2) for step in (0, 1) for said in (f"printed at step {step}", "complained at a step")
    ]
    assert sum(r"warning: \x1b[2J\x1b[31m[red]bad[/red] \x07 \u202e \ud800 end" in line for line in lines) == 2
    assert shown.screen.has_colours


def test_a_question_has_the_terminal_to_itself(terminals: dict[str, Shown]) -> None:
    """The panel makes room for it and comes back after the answer."""
    shown, is_answered, panels = terminals["asks"], False, 0
    for screen in shown.read():
        if not is_answered and "go on? [y/N]: " in shown.text:
            assert not any(line.startswith("run   ") for line in screen.shown) and screen.is_cursor_shown
            os.write(shown.terminal, b"y\n")
            is_answered = True
        panels += is_answered and any(line.startswith("run   ") for line in screen.shown)
    assert is_answered and panels > 1 and shown.code == 0 and shown.screen.is_cursor_shown
    assert "this may cost 2.00 to 4.00; go on? [y/N]: y" in shown.text
    assert shown.screen.shown[-1].startswith("run directory: ")


def test_an_exception_gives_the_terminal_back(terminals: dict[str, Shown]) -> None:
    shown = terminals["fails"]
    for _ in shown.read():
        pass
    assert shown.code == 7 and shown.screen.is_cursor_shown and "\x1b[?25l" in shown.text
    assert not any(line.startswith("run   ") for line in shown.screen.shown)
    assert not shown.screen.has_colours  # NO_COLOR


def test_a_dumb_terminal_gets_lines(terminals: dict[str, Shown]) -> None:
    shown = terminals["dumb"]
    for _ in shown.read():
        pass
    assert "\x1b" not in shown.text and shown.screen.shown[-1].startswith("run directory: ")


@pytest.mark.parametrize(("name", "number"), [("ctrl-c", signal.SIGINT), ("sigterm", signal.SIGTERM)])
def test_an_interruption_gives_the_terminal_back(name: str, number: int, terminals: dict[str, Shown]) -> None:
    shown, is_sent = terminals[name], False
    for screen in shown.read():
        if not is_sent and any("/2   " in line for line in screen.shown):
            shown.process.send_signal(number)
            is_sent = True
    assert is_sent and shown.code == 130 and shown.screen.is_cursor_shown
    assert shown.screen.shown[-1] == "interrupted"
    assert not any(line.startswith("run   ") for line in shown.screen.shown)


def test_an_interruption_during_an_import_gives_the_cursor_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process ends at once then, and nothing of the display runs any more."""
    written: list[tuple[int, bytes]] = []
    monkeypatch.setattr(interruption, "_is_importing", lambda frame: True)
    monkeypatch.setattr(interruption, "_has_actors", lambda: False)
    monkeypatch.setattr(os, "isatty", lambda descriptor: True)
    monkeypatch.setattr(os, "write", lambda descriptor, data: written.append((descriptor, data)))
    monkeypatch.setattr(os, "_exit", lambda code: (_ for _ in ()).throw(SystemExit(code)))
    with interruption.display_shown(), pytest.raises(SystemExit, match="130"):
        interruption.interrupt(signal.SIGTERM, None)
    assert written == [(1, b"\x1b[?25h"), (2, b"\ninterrupted\n")]


def shown_run(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Without a terminal."""
    command = [sys.executable, str(HERE.parent / "kits" / "shown_run.py"), str(folder), "0", *options]
    return subprocess.run(command, env=_environment({}), capture_output=True, text=True, timeout=300)


def test_json_is_all_that_standard_output_gets(tmp_path: Path) -> None:
    done = shown_run(tmp_path, "--json", "hostile", "torn", "fails")

    def refuse(constant: str) -> Any:
        raise AssertionError(f"{constant} is no JSON")

    lines = [json.loads(line, parse_constant=refuse) for line in done.stdout.splitlines()]
    assert done.stdout.isascii() and done.returncode == 7
    assert "printed at step 0" in done.stderr and "complained at a step" in done.stderr
    kinds = [line["kind"] for line in lines]
    assert kinds[0] == "began" and kinds[-1] == "ended" and lines[0]["format"] == 1
    assert set(kinds) - {"began", "ended", "note", "warning"} <= EVENTS.keys()
    assert all(isinstance(line["time"], float) for line in lines)
    judged = next(line for line in lines if line["kind"] == "shard_judged")
    assert judged["num_verdicts"] == 2 and judged["num_abstained"] == 0 and "verdicts" not in judged
    run_done = next(line for line in lines if line["kind"] == "round_done")
    assert run_done["round"] == 0 and run_done["evaluation"]["heldout"]["kl_initial"] > 0
    assert lines[-1]["exit_code"] == 1 and lines[-1]["run_dir"] == str(tmp_path / "run")
    assert next(line for line in lines if line["kind"] == "warning")["text"].startswith("\x1b[2J")


def test_quiet_leaves_warnings_and_the_last_line(tmp_path: Path) -> None:
    done = shown_run(tmp_path, "--quiet", "hostile")
    assert done.stdout == f"run directory: {tmp_path / 'run'}\n" and done.returncode == 0
    assert [line.split(" ")[0] for line in done.stderr.splitlines()] == ["warning:", "warning:"]


def test_a_command_that_never_began_says_so_in_json(tmp_path: Path) -> None:
    done = called("run", "nothing.yaml", "--json", cwd=tmp_path)
    began, ended = map(json.loads, done.out.splitlines())
    assert (began["kind"], ended["kind"], ended["exit_code"], ended["run_dir"]) == ("began", "ended", 2, None)
    assert "nothing.yaml" in ended["error"] and done.code == 2 and done.err.startswith("error: ")
    assert "--quiet and --json are both given" in called("run", "x", "--json", "--quiet", cwd=tmp_path).err
