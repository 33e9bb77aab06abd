"""What runs in the child process: build one object, then answer calls of its methods until the parent is gone.

Requests are pickled by the parent. Answers are JSON, so that nothing which the object's code says can run in the
parent. Imports little, because every child waits for it.
"""

from __future__ import annotations

import asyncio
import ctypes
import importlib
import inspect
import json
import os
import pickle
import signal
import socket
import sys
import traceback
from typing import Any

from judges.isolation.frames import HEADER_BYTES, frame
from online_dpo.errors import UserError

MAX_TEXT = 4000
"""Characters of an error's text that the parent is told."""

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main(fd: int, parent: int) -> None:
    """Serve on a socket that the parent opened.

    Args:
        fd: of the socket.
        parent: process id; whoever else is the parent by now has inherited us.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    os.set_inheritable(fd, False)
    # The parent's standard output belongs to its results; what the code prints goes where messages go.
    sys.stdout = sys.stderr
    sys.argv = ["online-dpo-child"]
    with asyncio.Runner() as runner:
        try:
            runner.run(_Server().serve(socket.socket(fileno=fd)))
        except BaseException as error:  # raised in a task of the object's own
            # At once. On its way out the runner would cancel the calls and the guilty one would be answered for. A call
            # that had not been read yet would then be the only one left, and be blamed.
            os._exit(_exit_code(error))


def _exit_code(error: BaseException) -> int:
    """What Python ends with when nothing catches an exception, whose text is printed as Python would."""
    if isinstance(error, SystemExit) and (error.code is None or isinstance(error.code, int)):
        return (error.code or 0) & 0xFF
    print(error.code if isinstance(error, SystemExit) else "".join(traceback.format_exception(error)), flush=True)
    return 1


class _Server:
    """Answers calls, side by side where the object's methods are asynchronous."""

    def __init__(self) -> None:
        self._object: Any = None
        self._tasks: dict[int, asyncio.Task[None]] = {}

    async def serve(self, connection: socket.socket) -> None:
        reader, self._writer = await asyncio.open_connection(sock=connection)
        while True:
            try:
                header = await reader.readexactly(HEADER_BYTES)
                message = await reader.readexactly(int.from_bytes(header, "big"))
            except (asyncio.IncompleteReadError, ConnectionError):
                os._exit(0)  # without waiting for threads: the parent is gone, or wants us gone
            number, method, arguments = pickle.loads(message)
            if method is not None:
                self._tasks[number] = asyncio.create_task(self._answer(number, method, arguments))
            elif number in self._tasks:
                self._tasks[number].cancel()

    async def _answer(self, number: int, method: str, arguments: tuple[Any, ...]) -> None:
        try:
            answer = {"value": await self._call(method, arguments)}
            text = json.dumps(answer)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            cancelled = task is not None and task.cancelling() > 0
            text = json.dumps({"cancelled": True} if cancelled else _error("RuntimeError", "cancelled its own call"))
        except BaseException as error:
            text = json.dumps(describe(error))
        del self._tasks[number]
        self._writer.write(frame(f"{number} {text}".encode()))
        await self._writer.drain()

    async def _call(self, method: str, arguments: tuple[Any, ...]) -> Any:
        if not method:  # the first call builds the object
            factory, given = arguments
            place, _, name = factory.partition(":")
            self._object = getattr(importlib.import_module(place), name)(**given)
            return self._object.about() if hasattr(self._object, "about") else None
        value = getattr(self._object, method)(*arguments)
        return await value if inspect.isawaitable(value) else value


def describe(error: BaseException) -> dict[str, Any]:
    """An exception as the parent is told of it."""
    text = _text(error)
    if isinstance(error, SystemExit):
        return _error("RuntimeError", f"called sys.exit({text})")
    if not isinstance(error, Exception):
        return _error("RuntimeError", f"raised {type(error).__name__}{text and ': '}{text}")
    frames = traceback.extract_tb(error.__traceback__)
    where = f"{frames[-1].filename}, line {frames[-1].lineno}" if frames else ""
    kind = "JudgeError" if isinstance(error, UserError) else type(error).__name__
    return _error(kind, text, where=where, trace="".join(traceback.format_tb(error.__traceback__))[-MAX_TEXT:])


def _text(error: BaseException) -> str:
    try:
        text = str(error)
    except BaseException as second:
        return f"an error without a text: its str() raised {type(second).__name__}"
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}..."


def _error(kind: str, text: str, **more: str) -> dict[str, Any]:
    return {"kind": kind, "text": text, **more}
