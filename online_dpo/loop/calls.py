"""The calls under way: whoever waits for one of them serves the others meanwhile, whoever made them.

So a round's shards are judged while later ones are sampled, and with `overlap: 1` the next round's shards are committed
and judged while the learner works on this one. People are asked like other judges, and waited for when nothing else is
under way: then all is asked, and who is reliable shows best.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any

from online_dpo.loop.people.asking import AskedPeople, People
from online_dpo.loop.stages import Event, Stages, Task
from online_dpo.types import Completion


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A call under way."""

    then: Callable[[Any], Iterator[Event]]  # takes its result
    owner: object  # who made it
    asks_judge: bool = False


class Calls:
    """All calls of a process, in the order in which they were made.

    Attributes:
        stages: who is called.
        people: the human judges; None where there are none.
        measured: gives every completion the length of its answer before it is committed.
    """

    def __init__(
        self,
        stages: Stages,
        people: People | None = None,
        *,
        measured: Callable[[Completion], Completion] = lambda completion: completion,
    ) -> None:
        self.stages, self.people, self.measured = stages, people, measured
        self._running: dict[Task, Call] = {}

    def add(self, task: Task, call: Call) -> None:
        self._running[task] = call

    def serve(self, owner: object, *, only_judges: Callable[[], bool] = lambda: False) -> Iterator[Event]:
        """Wait for all of one owner's calls and for what follows from them; those of others are served as they come.

        Args:
            owner: whose calls are waited for.
            only_judges: once it is true, the owner's calls of judges alone are waited for.
        """

        def is_left(call: Call) -> bool:
            return call.owner is owner and only_judges() and not call.asks_judge

        while any(call.owner is owner and not is_left(call) for call in self._running.values()):
            tasks = [task for task, call in self._running.items() if not is_left(call)]
            hosted = [task for task in tasks if not isinstance(task, AskedPeople)]
            if hosted:
                done: list[tuple[Task, Any]] = [self.stages.first_done(hosted)]
            else:
                done = yield from self._answers_of_people(owner)
            for task, result in done:
                yield from self._running.pop(task).then(result)

    def _answers_of_people(self, owner: object) -> Generator[Event, None, list[tuple[Task, Any]]]:
        assert self.people is not None
        asked = [task for task, call in self._running.items() if call.owner is owner and isinstance(task, AskedPeople)]
        return list((yield from self.people.answers(asked)))

    def learner(self, method: str, *args: Any) -> Generator[Event, None, Any]:
        """Make a call of the learner and wait for it; what else is under way goes on meanwhile.

        Args:
            method: of `LearnerStage`.
            args: its arguments.

        Returns (as the generator's value): what the method returned.
        """
        if not self._running:
            return getattr(self.stages.learner, method)(*args)
        found: list[Any] = []

        def keep(result: Any) -> Iterator[Event]:
            found.append(result)
            return iter(())

        self.add(self.stages.start_learner(method, *args), Call(then=keep, owner=found))
        yield from self.serve(found)
        return found[0]
