"""A tracker on a thread of its own: it may be slow, hang or fail, and the run goes on."""

from __future__ import annotations

import json
import queue
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from online_dpo.reports.trackers.tracker import Tracker

MAX_WAITING = 2000
"""Calls that wait for a tracker; what comes beyond them is dropped and counted."""

CLOSE_S = 20.0
"""How long the end of a run waits for a tracker."""

Call = Callable[[Tracker], None]


@dataclass
class Journal:
    """What one tracker was sent, in `trackers/NAME.json` of the run directory, so that nothing is sent twice."""

    id: str
    name: str  # of the run in trackers
    number: int = 1  # of the run in trackers: one more after each rewind
    num_calls: int = 0  # of `log` and `table`
    num_steps: int = 0  # optimizer steps of the whole run that were sent
    initial: tuple[str, ...] = ()  # evaluation sets of which the initial policy's figures were sent
    num_rounds: int = 0
    round_time: float | None = None  # when the last of them was done: another one, if it was played again

    @classmethod
    def new(cls, name: str, number: int = 1) -> Journal:
        return cls(id=uuid.uuid4().hex[:16], name=name if number == 1 else f"{name}-{number}", number=number)

    @classmethod
    def read(cls, path: Path) -> Journal:
        """Of a run directory's folder `trackers`; a new one, where none was written or it is damaged."""
        try:
            found = cls(**json.loads(path.read_text()))
            found.initial = tuple(found.initial)
            return found
        except (OSError, ValueError, TypeError):
            return cls.new(path.parents[1].name)

    def write(self, path: Path) -> None:
        path.parent.mkdir(exist_ok=True)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(asdict(self)))
        temporary.replace(path)


class Worker:
    """Calls a tracker, in order, on a thread of its own."""

    def __init__(self, name: str, tracker: Tracker) -> None:
        """Nothing is called yet.

        Args:
            name: of the tracker.
            tracker: only its thread touches it from here on.
        """
        self.name = name
        self._tracker = tracker
        self._backlog: Iterable[tuple[str, Call]] = ()
        self._queue: queue.Queue[tuple[str, Call] | None] = queue.Queue(MAX_WAITING)
        self._problems: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=f"tracker-{name}", daemon=True)
        self._num_failed = self._num_dropped = 0
        self._is_dead = False  # it could not be started

    @property
    def is_begun(self) -> bool:
        return self._thread.ident is not None

    def begin(self, backlog: Iterable[tuple[str, Call]]) -> None:
        """Start the thread.

        Args:
            backlog: `(method, call)`, made before everything else; the first one starts the tracker.
        """
        self._backlog = backlog
        self._thread.start()

    def put(self, method: str, call: Call) -> None:
        """Have a call made, soon; where too many wait, it is dropped and counted."""
        if self._is_dead:
            return
        try:
            self._queue.put_nowait((method, call))
        except queue.Full:
            self._num_dropped += 1
            if self._num_dropped == 1:
                self._problems.put(f"tracker {self.name} is too slow: {MAX_WAITING} calls wait, and more are dropped")

    def problems(self) -> list[str]:
        """Sentences about what went wrong since the last time; the first failure and the first drop are told."""
        found = []
        while not self._problems.empty():
            found.append(self._problems.get())
        return found

    def close(self, last: Call) -> list[str]:
        """Make a last call, and wait for the thread, but not for ever.

        Returns:
            Sentences about what is missing.
        """
        end = time.monotonic() + CLOSE_S
        if not self._is_dead:
            with suppress(queue.Full):
                for item in (("finish", last), None):
                    self._queue.put(item, timeout=max(0.0, end - time.monotonic()))
            self._thread.join(max(0.0, end - time.monotonic()))
        found = self.problems()
        if not self._is_dead and self._thread.is_alive():
            found.append(
                f"tracker {self.name} did not answer within {CLOSE_S:.0f} s of the run's end; about "
                f"{self._queue.qsize()} calls were not made. Every figure is in metrics.jsonl"
            )
        if self._num_failed > 1:
            found.append(f"tracker {self.name}: {self._num_failed} calls failed")
        if self._num_dropped:
            found.append(f"tracker {self.name}: {self._num_dropped} calls were dropped because it was too slow")
        return found

    def _work(self) -> None:
        for number, (method, call) in enumerate(self._backlog):
            self._call(method, call)
            if number == 0 and self._num_failed:
                self._is_dead = True  # what was not started takes nothing
                return
        while (item := self._queue.get()) is not None:
            self._call(*item)

    def _call(self, method: str, call: Call) -> None:
        try:
            call(self._tracker)
        except BaseException as error:  # a tracker may try to end the process
            self._num_failed += 1
            if self._num_failed == 1:
                what = "the run goes on without it" if method == "start" else "the run goes on"
                said: Any = " ".join(str(error).split())[:500]
                self._problems.put(f"tracker {self.name} failed ({type(error).__name__} in {method}); {what}: {said}")
