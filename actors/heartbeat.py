"""Signs of life of an actor: a thread in its process writes a counter of its progress into Ray's key-value store.

A process that is stopped writes nothing, and an engine that hangs writes the same number again and again. Both are told
from one that is merely slow, whose number grows.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import ray
from ray.experimental import internal_kv

EVERY_S = 1.0
PATIENCE = 5.0
"""A silence is too long that lasts so many times the longest one that ended by itself."""


class Progress:
    """Counts what an actor has done; any thread may add to it."""

    def __init__(self) -> None:
        self._count = 0

    def add(self, *_: Any, **__: Any) -> None:
        """One more piece of work; takes anything, so that it can be a hook."""
        self._count += 1

    def count(self) -> int:
        return self._count


def beat(count: Callable[[], int]) -> None:
    """Begin to write the counter, for as long as this actor lives; outside of a Ray actor nothing happens.

    Args:
        count: of the work done so far.
    """
    if not ray.is_initialized() or (actor_id := ray.get_runtime_context().get_actor_id()) is None:
        return

    def run() -> None:
        while True:
            with suppress(Exception):  # a lost connection ends the actor by other ways
                internal_kv._internal_kv_put(_key(actor_id), str(count()))
            time.sleep(EVERY_S)

    threading.Thread(target=run, daemon=True, name="heartbeat").start()


class Watch:
    """The driver's view of one actor's progress.

    Attributes:
        since: when its last progress was seen, by `clock`.
    """

    def __init__(self, actor: Any, *, floor_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Nothing has been seen yet.

        Args:
            actor: a handle.
            floor_s: no silence is too long that is shorter.
            clock: seconds.
        """
        self._key, self._floor_s, self._clock = _key(actor._actor_id.hex()), floor_s, clock
        self._last: bytes | None = None
        self._longest = 0.0  # silence that ended by itself
        self._looked = self.since = clock()

    def begin(self) -> None:
        """It was given something to do."""
        self.since = self._clock()

    def silence(self) -> float:
        """Seconds without progress; 0 where there was some since the last look. Looks once a second at most."""
        now = self._clock()
        if now - self._looked >= EVERY_S:
            self._looked = now
            found = self.read()
            if found != self._last:
                if self._last is not None:
                    self._longest = max(self._longest, now - self.since)
                self._last, self.since = found, now
        return now - self.since

    @property
    def deadline_s(self) -> float:
        """A silence that is too long."""
        return max(self._floor_s, PATIENCE * self._longest)

    def read(self) -> bytes | None:
        """The counter, as it was last written."""
        with suppress(Exception):
            return bytes(internal_kv._internal_kv_get(self._key) or b"")
        return self._last  # the store cannot be asked just now


def here() -> tuple[int, str]:
    """Process id and Ray's id of the node."""
    return os.getpid(), ray.get_runtime_context().get_node_id()


def _key(actor_id: str) -> str:
    return f"online-dpo/progress/{actor_id}"
