"""The parent's side: a child process that is started, asked, watched, and killed where it must be.

Two threads belong to each process. The keeper starts it, reads its answers, and holds it to its deadlines and its
memory; the process dies with this thread, so it never outlives its parent. The writer sends, since a busy child may
not read. Any event loop may wait for answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import pickle
import queue
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from judges.isolation.failures import Interrupted, ProcessEnded, RaisedInChild
from judges.isolation.frames import frame, take_messages
from judges.isolation.memory import resident_bytes
from online_dpo.errors import JudgeError

TICK_S, IDLE_TICK_S = 0.05, 0.25
"""How often deadlines and memory are looked at, while calls are under way and else."""

GRACE_S = 1.0
"""How long a call that is cancelled may take to end; after that the process is killed."""

_BOOT = (
    "import sys, json; sys.path[:] = json.loads(sys.argv[3]); import online_dpo; "
    "from judges.isolation.child import main; main(int(sys.argv[1]), int(sys.argv[2]))"
)


@dataclass(slots=True)
class _Call:
    deadline: float | None  # on the monotonic clock
    future: Future[Any] = field(default_factory=Future)
    overdue: bool = False
    told_to_end: float | None = None  # when


class Child:
    """An object in a process of its own, which is replaced at the next call after it died."""

    def __init__(
        self,
        factory: str,
        arguments: Mapping[str, Any],
        *,
        start_timeout_s: float,
        memory_limit_bytes: int | None = None,
        memory_setting: str = "",
    ) -> None:
        """Starts nothing yet.

        Args:
            factory: `module:name` of what builds the object. An `about` method, if it has one, is called at the start.
            arguments: of the factory, by name; picklable.
            start_timeout_s: seconds until the object must be built.
            memory_limit_bytes: resident memory above which the process is killed; None = no limit.
            memory_setting: what sets that limit, for messages.
        """
        self._make: Callable[[], _Process] = lambda: _Process(
            factory, arguments, start_timeout_s, memory_limit_bytes, memory_setting
        )
        self._process: _Process | None = None
        self._closer: weakref.finalize[Any, Child] | None = None
        self._lock = threading.Lock()

    @property
    def pid(self) -> int | None:
        """Of the process that runs, for tests and messages."""
        return None if self._process is None else self._process.pid

    def start(self) -> Any:
        """Start it where it does not run, and wait.

        Returns:
            What the object's `about` returned.

        Raises:
            JudgeError: the object says that it cannot be built.
            RaisedInChild, ProcessEnded, TimeoutError: something else went wrong.
        """
        return self._running().started.result()

    async def ready(self) -> None:
        """As `start`, without blocking the event loop."""
        started = self._running().started
        if not started.done():
            await asyncio.wrap_future(started)
        started.result()

    async def call(self, method: str, *arguments: Any, timeout_s: float | None) -> Any:
        """Call a method of the object.

        Args:
            method: its name; it may be `async`.
            arguments: picklable.
            timeout_s: seconds after which the call is cancelled, and the process killed if it does not end; None =
                it may take for ever.

        Returns:
            What it returned, by way of JSON.

        Raises:
            TimeoutError: it took too long.
            JudgeError: the method raised one, or another `UserError`.
            RaisedInChild: it raised something else.
            ProcessEnded: the process died of this call.
            Interrupted: the process died while several calls were under way; this one may be asked again, alone.
        """
        await self.ready()
        process = self._running()
        number, future = process.submit(method, arguments, timeout_s)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            process.abandon(number)
            raise

    def close(self) -> None:
        """Kill the process."""
        if self._closer is not None:
            self._closer()

    def _running(self) -> _Process:
        with self._lock:
            if self._process is None or self._process.ended.is_set():
                if self._closer is not None:
                    self._closer.detach()
                self._process = self._make()
                # Also when the interpreter exits. The threads hold the process, so nothing else would end it.
                self._closer = weakref.finalize(self, self._process.kill)
            return self._process


class _Process:
    """One process, from its start to its end."""

    def __init__(
        self,
        factory: str,
        arguments: Mapping[str, Any],
        start_timeout_s: float,
        memory_limit_bytes: int | None,
        memory_setting: str,
    ) -> None:
        self.pid: int | None = None
        self.ended = threading.Event()
        self._memory_limit_bytes, self._memory_setting = memory_limit_bytes, memory_setting
        self._calls: dict[int, _Call] = {}
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._cause: Exception | None = None  # why it was killed, where that is not a deadline
        self._received, self._killed = bytearray(), False
        self._socket, self._theirs = socket.socketpair()
        _, self.started = self.submit("", (factory, arguments), start_timeout_s)
        threading.Thread(target=self._keep, name="judge-keeper", daemon=True).start()

    def submit(self, method: str, arguments: tuple[Any, ...], timeout_s: float | None) -> tuple[int, Future[Any]]:
        """Begin a call; its number, and the future of its answer."""
        call = _Call(None if timeout_s is None else time.monotonic() + timeout_s)
        call.future.set_running_or_notify_cancel()  # nobody else can cancel it
        number = next(self._numbers)
        message = frame(pickle.dumps((number, method, arguments)))
        with self._lock:
            if not self.ended.is_set():
                self._calls[number] = call
                self._outbox.put(message)
                return number, call.future
        call.future.set_exception(Interrupted("the process had ended before it was asked"))
        return number, call.future

    def abandon(self, number: int) -> None:
        """Nobody waits for a call any more; if it does not end soon the process is killed."""
        with self._lock:
            if number in self._calls:
                self._tell_to_end(number, self._calls[number])

    def kill(self) -> None:
        """Kill it and what it started in turn."""
        if self.pid is not None and not self.ended.is_set():
            self._killed = True
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)

    def _keep(self) -> None:
        try:
            process = self._launch()
        except OSError as error:
            self._theirs.close()
            self._cause = ProcessEnded(f"no process could be started: {error}")
            self._settle(None)
            return
        threading.Thread(target=self._send, name="judge-writer", daemon=True).start()
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        next_look = 0.0
        while True:
            if poll.poll(1000 * (TICK_S if self._calls else IDLE_TICK_S)) and not self._receive():
                break
            if time.monotonic() >= next_look:
                self._look()
                next_look = time.monotonic() + TICK_S
                if _has_ended(process.pid):  # a process that it has forked may keep the socket open
                    while poll.poll(0) and self._receive():
                        pass
                    break
        patience = time.monotonic() + GRACE_S  # it may be on its way to an exit code that tells something
        while not (self._killed or _has_ended(process.pid)) and time.monotonic() < patience:
            time.sleep(0.005)
        self.kill()
        self._settle(process.wait())

    def _launch(self) -> subprocess.Popen[bytes]:
        arguments = [str(self._theirs.fileno()), str(os.getpid()), json.dumps(sys.path)]
        process = subprocess.Popen(
            [sys.executable, "-c", _BOOT, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=2,
            pass_fds=[self._theirs.fileno()],
            start_new_session=True,  # Ctrl-C is for the parent
        )
        self.pid = process.pid
        self._theirs.close()
        return process

    def _send(self) -> None:
        with contextlib.suppress(OSError):  # it died, which the keeper notices too
            while (message := self._outbox.get()) is not None:
                self._socket.sendall(message)

    def _receive(self) -> bool:
        """Read what there is; False where nothing comes any more."""
        try:
            data = self._socket.recv(1 << 18)
        except ConnectionError:
            return False
        self._received += data
        for message in take_messages(self._received):
            number, _, text = message.partition(b" ")
            try:
                key, answer = int(number), json.loads(text)
            except ValueError:
                self._cause = ProcessEnded("its process wrote into the connection to its host")
                self.kill()
                return False
            with self._lock:
                call = self._calls.pop(key, None)
            if call is not None:
                _resolve(call, answer)
                if call.future is self.started and call.future.exception() is not None:
                    self.kill()  # it has no object to call; the next call tries again
        return bool(data)

    def _look(self) -> None:
        """Hold it to its memory and its deadlines."""
        limit = self._memory_limit_bytes
        if limit is not None and self.pid is not None and (taken := resident_bytes(self.pid)) > limit:
            self._cause = ProcessEnded(
                f"its process took {taken / 1e9:.2f} GB of memory and {self._memory_setting} is {limit / 1e9:.3g}"
            )
            self.kill()
            return
        now = time.monotonic()
        with self._lock:
            for number, call in self._calls.items():
                if call.deadline is not None and now >= call.deadline and not call.overdue:
                    call.overdue = True
                    self._tell_to_end(number, call)
            stuck = any(c.told_to_end is not None and now - c.told_to_end > GRACE_S for c in self._calls.values())
        if stuck:
            self.kill()

    def _tell_to_end(self, number: int, call: _Call) -> None:
        if call.told_to_end is None:
            call.told_to_end = time.monotonic()
            self._outbox.put(frame(pickle.dumps((number, None, ()))))

    def _settle(self, code: int | None) -> None:
        """It has ended: tell whoever waits."""
        with self._lock:
            self.ended.set()
            calls, self._calls = list(self._calls.values()), {}
        self._outbox.put(None)
        self._socket.close()
        for call in calls:
            if len(calls) > 1:
                call.future.set_exception(Interrupted("the process ended while several calls were under way"))
            elif call.overdue:
                call.future.set_exception(TimeoutError("no answer in time"))
            else:
                call.future.set_exception(self._cause or ProcessEnded(_how_it_ended(code)))


def _resolve(call: _Call, answer: dict[str, Any]) -> None:
    if call.overdue:
        call.future.set_exception(TimeoutError("no answer in time"))
    elif "value" in answer:
        call.future.set_result(answer["value"])
    elif "cancelled" in answer:
        call.future.set_exception(Interrupted("nobody waited for it"))
    elif answer["kind"] == "JudgeError":
        call.future.set_exception(JudgeError(answer["text"]))
    else:
        call.future.set_exception(RaisedInChild(**answer))


def _has_ended(pid: int) -> bool:
    """Whether a child has ended. It stays a zombie, so that its number, also that of its group, is not used again."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _how_it_ended(code: int | None) -> str:
    if code is not None and code < 0:
        with contextlib.suppress(ValueError):
            return f"its process was killed by {signal.Signals(-code).name}"
    return f"its process ended with exit code {code}"
