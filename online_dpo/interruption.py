"""What Ctrl-C and a cluster's SIGTERM do to the command, from its first import on."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

INTERRUPTED = 130
"""The exit code of a command that was interrupted."""

SHOW_CURSOR = b"\x1b[?25h"

_is_shown = False


@contextmanager
def display_shown() -> Iterator[None]:
    """A display has the terminal in here: a word of ours would tear it, and the command says that it is interrupted."""
    global _is_shown
    _is_shown = True
    try:
        yield
    finally:
        _is_shown = False


def answer_signals() -> None:
    """Let SIGINT and SIGTERM end the command in one way: commits are kept and actors are ended."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)


def interrupt(number: int, frame: FrameType | None) -> None:
    """Say so and raise KeyboardInterrupt; or, while a module is imported and nothing runs yet, end the process.

    An exception inside an import does not always arrive: extension modules turn it into errors of their own, and the
    import system's callbacks print it and go on.
    """
    leaves = _is_importing(frame) and not _has_actors()
    if _is_shown and leaves and os.isatty(1):
        os.write(1, SHOW_CURSOR)
    if leaves or not _is_shown:
        os.write(2, b"\ninterrupted\n")
    if leaves:
        os._exit(INTERRUPTED)
    raise KeyboardInterrupt


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _has_actors() -> bool:
    """Whether Ray was started, so that there is something to end."""
    ray: Any = sys.modules.get("ray")
    return bool(getattr(ray, "is_initialized", lambda: False)())
