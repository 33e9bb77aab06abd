"""Which display a command has: a terminal's, lines, warnings alone, or JSON; and how each of them ends."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from io import TextIOWrapper
from pathlib import Path
from typing import Any, TextIO

import typer
from rich.console import Console
from rich.text import Text

from online_dpo.errors import UserError
from online_dpo.interruption import INTERRUPTED
from online_dpo.loop.stages import Event
from online_dpo.reports.listening import WARNING, Listener
from online_dpo.reports.live.json_lines import JsonLines
from online_dpo.reports.live.terminal import Terminal
from online_dpo.reports.progress import Progress, warnings_of
from online_dpo.store.run_store import RunStore
from online_dpo.text_files import printable


class Quiet(Listener):
    """Warnings and incidents alone, on standard error."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def note(self, line: str) -> None:
        if line.startswith(WARNING):
            self._tell(line)

    def hear(self, event: Event) -> None:
        for warning in warnings_of(event):
            self._tell(f"{WARNING}{warning}")
        if event.kind == "incident":
            self._tell(f"round {event.round_index + 1}: {event.data['what']}")

    def _tell(self, line: str) -> None:
        self._console.print(Text(printable(line)))


class Display:
    """What shows a run, from when its config is loaded until it ends."""

    def __init__(self, listener: Listener, *, is_quiet: bool = False) -> None:
        """Nothing is shown yet."""
        self.listener, self.is_quiet = listener, is_quiet
        self.run_dir: Path | None = None
        self._stack = ExitStack()

    def begin(self, run_dir: Path) -> Listener:
        """Show a run from here on; what comes back hears it."""
        self.run_dir = run_dir
        if isinstance(self.listener, Terminal):
            self._stack.enter_context(self.listener)
            self.listener.earlier = lambda: _finished(run_dir)
        return self.listener

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The terminal is somebody else's for a while."""
        self.end()
        yield
        if isinstance(self.listener, Terminal):
            self._stack.enter_context(self.listener)

    def end(self) -> None:
        """Give the terminal back; safe to repeat."""
        self._stack.close()


@contextmanager
def display(*, quiet: bool, as_json: bool) -> Iterator[Display]:
    """The display that fits where the output goes; in the end it says how the command ended, where it is JSON.

    Raises:
        UserError: two displays are asked for.
    """
    if quiet and as_json:
        raise UserError("--quiet and --json are both given; choose one of them")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # of a terminal that has few characters
    if as_json:
        with _json_lines() as shown:
            yield shown
        return
    shown = Display(Quiet(Console(stderr=True, highlight=False, soft_wrap=True)) if quiet else _lines(), is_quiet=quiet)
    try:
        yield shown
    finally:
        shown.end()


def _lines() -> Progress:
    console = Console(highlight=False, soft_wrap=True)
    # FORCE_COLOR makes a terminal of anything for rich; a display needs a real one, which can move its cursor.
    return Terminal(console) if sys.stdout.isatty() and console.is_interactive else Progress(console)


@contextmanager
def _json_lines() -> Iterator[Display]:
    lines = JsonLines(_claim_stdout())
    shown, code, why = Display(lines), 0, None
    try:
        yield shown
    except BaseException as error:
        code = _exit_code(error)
        why = None if isinstance(error, typer.Exit) else f"{error}" or "interrupted"
        raise
    finally:
        run_dir = None if shown.run_dir is None else str(shown.run_dir)
        with suppress(OSError):  # nobody reads any more
            lines.write("ended", exit_code=code, error=why, run_dir=run_dir)


def _claim_stdout() -> TextIO:
    """Standard output for one writer: what anybody else prints there goes to standard error from now on."""
    sys.stdout.flush()
    claimed = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return claimed


def _exit_code(error: BaseException) -> int:
    """As `cli.main` gives it."""
    if isinstance(error, typer.Exit):
        return error.exit_code
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        return INTERRUPTED
    return 2 if isinstance(error, UserError) else 1


def _finished(run_dir: Path) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl` of the rounds that are finished."""
    with RunStore.read(run_dir) as store:
        finished = store.finished_rounds()
        return [record for record in store.metrics() if record["round"] in finished]
