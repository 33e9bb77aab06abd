"""Seconds that a run spends in calls of its actors, by method, for benchmarks: what stages are made of."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any


class CallTimes:
    """Watches every call that a run makes of generators, judges and learner, from its start until its result is there.

    Calls that go on side by side are each counted whole, so the sum may exceed the time that passed.
    """

    def __init__(self) -> None:
        """Watch from now on, in this process."""
        from actors.cluster import RayStages, RemoteLearner

        self._seconds: Counter[str] = Counter()
        self._begun: dict[int, tuple[str, float]] = {}  # of the tasks under way, by identity
        self._watch(RayStages, "push", "push")
        self._watch(RayStages, "probe", "probe: engines")
        calls, times = RemoteLearner.__getattr__, self

        def timed_call(learner: Any, name: str) -> Any:
            return times._timed(f"learner: {name}", calls(learner, name))

        RemoteLearner.__getattr__ = timed_call  # type: ignore[method-assign]
        for name, shown in (("start_sampling", "sample"), ("start_judging", "judge"), ("start_rescoring", "re-score")):
            self._watch_start(RayStages, name, shown)
        first_done = RayStages.first_done

        def finished(stages: Any, tasks: Any) -> Any:
            task, result = first_done(stages, tasks)
            shown, begun = self._begun.pop(id(task), (None, 0.0))
            if shown is not None:
                self._seconds[shown] += time.perf_counter() - begun
            return task, result

        RayStages.first_done = finished  # type: ignore[method-assign]

    def take(self) -> dict[str, float]:
        """What was counted since the last time, seconds by call."""
        found = dict(self._seconds)
        self._seconds.clear()
        return found

    def _timed(self, shown: str, call: Any) -> Any:
        def timed(*args: Any) -> Any:
            start = time.perf_counter()
            try:
                return call(*args)
            finally:
                self._seconds[shown] += time.perf_counter() - start

        return timed

    def _watch(self, owner: Any, name: str, shown: str) -> None:
        setattr(owner, name, self._timed(shown, getattr(owner, name)))

    def _watch_start(self, owner: Any, name: str, shown: str) -> None:
        begin = getattr(owner, name)

        def started(*args: Any, **options: Any) -> Any:
            start = time.perf_counter()
            task = begin(*args, **options)
            self._begun[id(task)] = (shown, start)
            return task

        setattr(owner, name, started)
