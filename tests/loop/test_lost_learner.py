"""The learner is lost in any of its calls, twice: the loop begins anew with what is committed, and ends the same."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from kill_kit import WORK
from loop_kit import FakeLearner, FakeStages, FakeTask
from loop_runs import Run, comparable

from online_dpo.errors import ActorError
from online_dpo.store.run_store import RunStore

GOLD = {"gold": {"type": "python", "target": "none:none"}}


class Losing(FakeStages):
    """A world whose learner is lost before or after certain calls; generators and judges stay as they are."""

    def __init__(self, config: Any, losses: list[tuple[int, bool]]) -> None:
        super().__init__(config)
        self.config, self.losses, self.num_calls = config, dict(losses), 0
        self.learner: Any = Mortal(self, self.learner)

    def lose(self, call: Any) -> Any:
        """Make a call of the learner, unless it is lost before, or is lost after it."""
        done = self.losses.pop(self.num_calls, None)
        self.num_calls += 1
        if done is False:
            raise ActorError("the learner was lost")
        result = call()
        if done is True:
            raise ActorError("the learner was lost once it had done it")
        return result

    def recover(self, error: ActorError) -> None:
        self.learner = Mortal(self, FakeLearner(self.tape, self.config, None))

    def start_rescoring(self, rows: Any, under: Any) -> FakeTask:
        task = super().start_rescoring(rows, under)
        honest = task.result
        task.result = lambda: self.lose(honest)
        return task


class Mortal:
    def __init__(self, stages: Losing, learner: FakeLearner) -> None:
        self._stages, self._learner = stages, learner

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._learner, name)
        if not callable(found) or name == "scores":  # `scores` is the fake's own
            return found
        return lambda *args: self._stages.lose(lambda: found(*args))


@pytest.mark.parametrize("overlap", [0, 1])
def test_the_learner_is_lost_in_any_call_and_again_a_few_calls_later(overlap: int, tmp_path: Path) -> None:
    """Would catch a step that is taken twice, an update that starts from weights that were lost, metrics that are
    written twice, and a generator that keeps the weights of an update that is made again."""
    run = Run.of(
        tmp_path,
        evaluation__judges=GOLD,
        reference={"type": "every", "rounds": 2},
        verdicts={"repeated": 0.7},
        overlap=overlap,
    )
    whole = Losing(run.config, [])
    run.go_on(whole)
    expected, work = comparable(run.path), Counter(whole.tape.calls(*WORK))
    assert whole.num_calls > 20
    for number in range(whole.num_calls):
        lost = run.at(tmp_path / f"{number}")
        stages = Losing(run.config, [(number, number % 2 == 0), (number + 1 + number % 5, number % 3 == 0)])
        lost.go_on(stages)
        assert not stages.losses or number + 5 >= whole.num_calls
        assert comparable(lost.path) == expected, number
        with RunStore.read(lost.path) as store:
            store.verify()
        # Only steps since the last checkpoint, reference passes and shards under way are done again.
        again = Counter(stages.tape.calls(*WORK)) - work
        assert sum(again.values()) <= 12 and not work - Counter(stages.tape.calls(*WORK)), (number, again)
