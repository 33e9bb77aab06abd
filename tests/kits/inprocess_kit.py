"""The command inside the test's own process: as strict as a process of its own, without its ten seconds of imports."""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, chdir, contextmanager
from pathlib import Path
from typing import Any, NoReturn, TextIO

import pytest
import ray

from online_dpo import cli

HIDDEN_WARNINGS = (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning)
"""What Python does not show outside of `__main__`."""


def call_main(
    arguments: list[str], *, cwd: Path, environment: dict[str, str], program: str = cli.__file__
) -> tuple[int, str, str]:
    """Run `online-dpo ARGUMENTS` in a folder, up to the exit of its process.

    Everything that a process would have printed is caught, whoever prints it: the two file descriptors are redirected,
    and warnings and log lines go there instead of to pytest. Ray cannot be started: what needs it needs a process.

    Returns:
        Exit code, standard output, standard error.
    """
    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        stack.enter_context(chdir(cwd))
        stack.enter_context(_environment(environment))
        for number in (signal.SIGINT, signal.SIGTERM):
            stack.callback(signal.signal, number, signal.getsignal(number))
        # As under `python -m online_dpo.cli`: a wrong command line is told with the program's name.
        patch.setattr(sys, "argv", [program, *arguments])
        if program == cli.__file__:
            patch.setattr(sys.modules["__main__"], "__package__", cli.__package__)
        else:
            patch.setattr(sys.modules["__main__"], "__package__", None)
        patch.setattr(ray, "is_initialized", lambda: False)  # a new process has no Ray, whatever other tests started
        patch.setattr(ray, "init", _refuse_ray)
        patch.setattr(sys, "stdin", stack.enter_context(Path(os.devnull).open()))
        read = [stack.enter_context(_redirected(patch, name)) for name in ("stdout", "stderr")]
        stack.enter_context(_plain_logging(sys.stderr))
        stack.enter_context(_plain_warnings())
        with pytest.raises(SystemExit) as ended:
            cli.main()
        code = ended.value.code
        assert code is None or isinstance(code, int), code
        out, err = (content() for content in read)
    return code or 0, out, err


def _refuse_ray(*_: Any, **__: Any) -> NoReturn:
    raise AssertionError("a command that runs in the test's process may not start Ray")


@contextmanager
def _environment(environment: dict[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(environment)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def _redirected(patch: pytest.MonkeyPatch, name: str) -> Iterator[Callable[[], str]]:
    """Point `sys.stdout` or `sys.stderr`, and its file descriptor, at a file; gives a function that reads it."""
    descriptor = {"stdout": 1, "stderr": 2}[name]
    kept = os.dup(descriptor)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), descriptor)
        stream = os.fdopen(os.dup(descriptor), "w", buffering=1, encoding="utf-8")
        patch.setattr(sys, name, stream)

        def content() -> str:
            stream.flush()
            file.seek(0)
            return file.read().decode()

        try:
            yield content
        finally:
            stream.close()
            os.dup2(kept, descriptor)
            os.close(kept)


@contextmanager
def _plain_logging(stream: TextIO) -> Iterator[None]:
    """Log lines go where a new process would send them: libraries' handlers to this stream, pytest's to nobody."""
    root = logging.getLogger()
    known = [root, *(logger for logger in root.manager.loggerDict.values() if isinstance(logger, logging.Logger))]
    everyone = {handler for logger in known for handler in logger.handlers}
    # A handler without a stream of its own looks up sys.stderr at every line.
    mine = {h: h.stream for h in everyone if _writes_to_screen(h) and not _is_pytests(h) and "stream" in vars(h)}
    roots = root.handlers[:]
    root.handlers[:] = [handler for handler in roots if not _is_pytests(handler)]
    for handler in mine:
        handler.stream = stream
    try:
        yield
    finally:
        for handler, old in mine.items():
            handler.stream = old
        root.handlers[:] = roots


def _writes_to_screen(handler: logging.Handler) -> bool:
    return isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler)


def _is_pytests(handler: logging.Handler) -> bool:
    return type(handler).__module__.startswith("_pytest.")


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Warnings are printed as a new process prints them, and not collected by pytest."""

    def show(message: Any, category: Any, filename: str, lineno: int, file: Any = None, line: Any = None) -> None:
        sys.stderr.write(warnings.formatwarning(message, category, filename, lineno, line))

    with warnings.catch_warnings():
        warnings.resetwarnings()
        for category in HIDDEN_WARNINGS:
            warnings.simplefilter("ignore", category)
        warnings.showwarning = show
        yield
