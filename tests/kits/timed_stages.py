"""The fake world on a clock of its own: every call takes given seconds of one actor, which does one thing at a time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from loop_kit import FakeStages, FakeTask

from online_dpo.config.run import RunConfig


class TimedStages(FakeStages):
    """Nothing sleeps: whoever waits for a call moves the clock to where it ends.

    Attributes:
        now: seconds since the start.
        busy: actor -> seconds that it worked.
    """

    def __init__(self, config: RunConfig, seconds: Mapping[str, float]) -> None:
        """The clock stands at 0.

        Args:
            config: of the run.
            seconds: of `sample` and `judge`, for each shard; of `reference_logps` and `step`, for each call.
        """
        super().__init__(config)
        self.now = 0.0
        self.busy: dict[str, float] = defaultdict(float)
        self._seconds = seconds
        self._free: dict[str, float] = defaultdict(float)  # when each actor has done all that it was asked
        self._ends: dict[FakeTask, float] = {}
        self.learner: Any = _TimedLearner(self, self.learner)

    def work(self, actor: str, kind: str) -> float:
        """Give an actor something to do; when it will be done."""
        seconds = self._seconds.get(kind, 0.0)
        self.busy[actor] += seconds
        self._free[actor] = max(self.now, self._free[actor]) + seconds
        return self._free[actor]

    def start_sampling(self, shard: Any, plan: Any, version: int) -> FakeTask:
        task = super().start_sampling(shard, plan, version)
        self._ends[task] = self.work(f"generator {task.replica}", "sample")
        return task

    def start_judging(self, judge: str, shard: Any, completions: Any, *, again: bool = False) -> FakeTask:
        task = super().start_judging(judge, shard, completions, again=again)
        self._ends[task] = self.work(f"judge {judge}", "judge")
        return task

    def start_rescoring(self, rows: Any, under: Any) -> FakeTask:
        task = super().start_rescoring(rows, under)
        self._ends[task] = self.work("learner", "score")
        return task

    def start_learner(self, method: str, *args: Any) -> FakeTask:
        call = getattr(self.learner.untimed, method)
        task = FakeTask(method, lambda: call(*args))
        self._ends[task] = self.work("learner", method)
        return task

    def first_done(self, tasks: Sequence[FakeTask]) -> tuple[FakeTask, Any]:
        first = min(tasks, key=self._ends.__getitem__)
        self.now = max(self.now, self._ends[first])
        _, result = super().first_done([first])
        return first, result


class _TimedLearner:
    """The fake learner, whose calls are waited for."""

    def __init__(self, stages: TimedStages, learner: Any) -> None:
        self._stages, self.untimed = stages, learner

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.untimed, name)
        if not callable(found) or name == "scores":  # the fake's own, of a task whose end is known
            return found

        def call(*args: Any) -> Any:
            self._stages.now = self._stages.work("learner", name)
            return found(*args)

        return call
