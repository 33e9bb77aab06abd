"""The display on a terminal: lines that stay, and below them a panel that shows where the run stands."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, suppress
from typing import Any

from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderResult
from rich.live import Live
from rich.text import Text

from online_dpo.errors import OnlineDPOError
from online_dpo.interruption import display_shown
from online_dpo.loop.stages import Event
from online_dpo.reports.live.panel import panel
from online_dpo.reports.live.standing import Standing
from online_dpo.reports.progress import Progress

REFRESH_HZ = 2.0
"""Drawing it takes half a millisecond, on one of 2 CPU cores."""


class Terminal(Progress):
    """A context manager: a terminal whose display has no end keeps its cursor hidden."""

    earlier: Callable[[], Iterable[Mapping[str, Any]]] = staticmethod(tuple)
    """Gives the lines of `metrics.jsonl` of the rounds that are finished when the run starts."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        """Nothing is shown yet.

        Args:
            console: of a terminal.
            clock: gives seconds.
        """
        super().__init__(console)
        self._standing = Standing(clock)
        # The panel is drawn by a thread of rich's. Nothing is printed while it is held: rich has a lock of its own.
        self._lock = threading.Lock()
        self._panel = _Panel(self)
        self._live = _Live(self._panel, console)
        self._has_terminal = ExitStack()

    def __enter__(self) -> Terminal:
        self._has_terminal.enter_context(display_shown())
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._live.stop()
        finally:
            self.console.show_cursor(True)  # a second Ctrl-C may have ended what would have done it
            self._has_terminal.close()

    def note(self, line: str) -> None:
        with self._lock:
            self._standing.note(line)
        super().note(line)

    def hear(self, event: Event) -> None:
        with self._lock:
            self._standing.hear(event)
            if event.kind == "run_started":
                self._add_earlier()
        super().hear(event)

    def lines(self, width: int, *, ascii_only: bool) -> list[Text]:
        """Of the panel, now."""
        with self._lock:
            return panel(self._standing, width=width, ascii_only=ascii_only)

    def _add_earlier(self) -> None:
        with suppress(OSError, OnlineDPOError):  # then the lines begin with this process
            for record in self.earlier():
                self._standing.headline.add(record["kind"], record)


class _Panel:
    """What rich draws, again and again."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self.widths: list[int] = []  # of the lines that were drawn last

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = self._terminal.lines(options.max_width, ascii_only=options.ascii_only)
        self.widths = [line.cell_len for line in lines]
        yield from lines


class _Live(Live):
    """Rich's, which also finds its lines again where the terminal was made narrower and has folded them."""

    def __init__(self, drawn: _Panel, console: Console) -> None:
        super().__init__(
            drawn,
            console=console,
            refresh_per_second=REFRESH_HZ,
            transient=True,
            vertical_overflow="crop",
        )
        self._drawn = drawn
        self._width = console.width

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        width = self.console.width
        if width < self._width and self._live_render._shape is not None:
            rows = sum(max(1, math.ceil(length / width)) for length in self._drawn.widths)
            self._live_render._shape = (width, rows)
        self._width = width
        return super().process_renderables(renderables)
