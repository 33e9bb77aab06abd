"""A line of `metrics.jsonl` for every step, evaluation and round, and for every check of the generators' weights."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

from online_dpo.loop.stages import Event
from online_dpo.loop.weight_sync import CHECKS
from online_dpo.store.run_store import RunStore

RECORDED = (*CHECKS, "step", "evaluated", "evaluated_pairs", "round_done")


def check_metrics(store: RunStore) -> None:
    """Compare `metrics.jsonl` with what the last finished round vouched for.

    Raises:
        CorruptionError: that part of it is shorter than it was, or altered.
    """
    finished = store.finished_rounds()
    if finished:
        store.check_metrics(store.round(finished[-1]).state()["metrics"])


class StageClock:
    """Seconds spent in each stage of a round, taken from the events that announce them."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._stage: str | None = None
        self._since = clock()
        self.seconds: dict[str, float] = {}

    def hear(self, event: Event) -> None:
        if event.kind in ("round_started", "stage", "round_done"):
            now = self._clock()
            if self._stage is not None:
                self.seconds[self._stage] = self.seconds.get(self._stage, 0.0) + now - self._since
            self._stage, self._since = event.data.get("stage", "preparing"), now
        if event.kind == "round_started":
            self.seconds = {}


class JudgeClock:
    """How long each judge's calls for a round took, of the process that hears this."""

    def __init__(self) -> None:
        self._seconds: dict[int, dict[str, list[float]]] = {}  # by round: calls for the next one may come early

    def hear(self, event: Event) -> None:
        for label, seconds in event.data.get("latencies_s", {}).items():
            self._seconds.setdefault(event.round_index, {}).setdefault(label, []).extend(seconds)

    def take(self, round_index: int) -> dict[str, dict[str, float]]:
        """Judge -> mean, median, 95 % quantile and maximum of the seconds of its answered calls, once."""
        found = self._seconds.pop(round_index, {})
        return {label: describe_latency(seconds) for label, seconds in found.items() if seconds}


def describe_latency(seconds: Sequence[float]) -> dict[str, float]:
    """Of at least one call."""
    ordered = sorted(seconds)
    return {
        "num_calls": len(ordered),
        "mean": statistics.fmean(ordered),
        "median": statistics.median(ordered),
        "p95": ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))],
        "max": ordered[-1],
    }


class MetricsWriter:
    """Writes what lasts. Hears every event before anyone else does, and before the loop goes on to commit."""

    def __init__(self, store: RunStore) -> None:
        self._store = store
        self._clock = StageClock()
        self._judges = JudgeClock()

    def hear(self, event: Event) -> None:
        self._clock.hear(event)
        self._judges.hear(event)
        if event.kind not in RECORDED:
            return
        record: dict[str, Any] = {"kind": event.kind, "round": event.round_index, "time": time.time(), **event.data}
        if event.kind == "round_done":
            # Of this process: what a resumed round did before it was interrupted is not in here.
            record["seconds"] = {name: round(value, 3) for name, value in self._clock.seconds.items()}
            record["latency_s"] = self._judges.take(event.round_index)
        self._store.append_metrics(_finite(record))


def _finite(record: dict[str, Any]) -> dict[str, Any]:
    """JSON knows no NaN or infinity: they become null, which readers see as missing."""
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in record.items()
    }
