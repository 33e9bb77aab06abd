"""How many requests an address or a session may make."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

MAX_KEYS = 10_000
"""Whoever comes under ever new names cannot fill the memory: the fullest buckets are forgotten first."""


class RateLimit:
    """A bucket of tokens for each key, which fills at a steady rate; a request takes one."""

    def __init__(self, per_second: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        """Limit to `burst` requests at once and `per_second` in the long run."""
        self.per_second = per_second
        self.burst = burst
        self._clock = clock
        self._lock = threading.Lock()
        self._buckets: dict[str, tuple[float, float]] = {}  # key -> tokens at a time

    def wait_s(self, key: str) -> float:
        """Take a token, and 0; or the seconds until there is one."""
        now = self._clock()
        with self._lock:
            tokens, then = self._buckets.get(key, (float(self.burst), now))
            tokens = min(float(self.burst), tokens + (now - then) * self.per_second)
            if tokens < 1.0:
                return (1.0 - tokens) / self.per_second
            self._buckets[key] = (tokens - 1.0, now)
            if len(self._buckets) > MAX_KEYS:
                self._forget(now)
            return 0.0

    def _forget(self, now: float) -> None:
        def tokens(item: tuple[str, tuple[float, float]]) -> float:
            return item[1][0] + (now - item[1][1]) * self.per_second

        kept = sorted(self._buckets.items(), key=tokens)[: MAX_KEYS // 2]
        self._buckets = dict(kept)
