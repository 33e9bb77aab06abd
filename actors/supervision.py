"""An actor that a run works with, under one name however often its process is replaced.

Several actors may work as one (the workers of a learner): all are called in every call, and the loss of any is the loss
of all.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeAlias

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.failures import Incident, cause_of, doing, raised_by
from actors.heartbeat import Watch
from actors.session import dead_parts, last_lines
from online_dpo.errors import ActorError, OnlineDPOError

Refs: TypeAlias = tuple[Any, ...]

HOUR_S = 3600.0
LOOK_S = 1.0
"""How often whoever waits for a call looks whether the actor still makes progress."""

KILL_S = 10.0
"""How long another node may take to kill a process."""

SETTLE_S = 2.0
"""How long to look for a rank that died after another one has failed: its connection to that one may be what broke."""


class ActorLost(ActorError):
    """An actor died, does not answer, or raised something unexpected. Raised in the driver only."""

    def __init__(self, host: Supervised, method: str, cause: str, detail: str, rank: int = 0) -> None:
        super().__init__(f"{host.name} was lost while {doing(method)}: {cause}{host.last_lines(detail, rank)}")
        self.host, self.method, self.cause, self.detail = host, method, cause, detail


class Supervised:
    """One actor of a run, or several that work as one.

    Attributes:
        name: in messages, such as `generator 0`.
        incarnation: how often it was replaced.
    """

    def __init__(
        self,
        name: str,
        make: Callable[[], Any],
        *,
        start_timeout_s: float,
        stall_timeout_s: float,
        max_restarts: int,
        less_memory: str,
        report: Callable[[Incident], None] = lambda incident: None,
        after_restart: Callable[[Supervised], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Make the actor; it loads in the background.

        Args:
            name: in messages.
            make: a new actor; called again for each restart. A list of actors works as one: the first is called, and
                the others have a method `take_part(method, *args)`, whose result nobody looks at.
            start_timeout_s: how long it may take to be placed and ready.
            stall_timeout_s: seconds without progress after which it counts as not answering.
            max_restarts: in an hour; the next failure ends the run.
            less_memory: settings that make it need less memory, for messages.
            report: is told of every restart, and of every silence.
            after_restart: brings a new actor to where the old one was.
            clock: seconds.
        """
        self.name, self.incarnation = name, 0
        self._make, self._start_timeout_s, self._stall_timeout_s = make, start_timeout_s, stall_timeout_s
        self._max_restarts, self._less_memory, self._clock = max_restarts, less_memory, clock
        self._report, self._after_restart = report, after_restart
        self._processes: list[tuple[int, str]]  # id and node of each actor, once all are ready
        self._restarted: list[float] = []  # when, within the last hour
        self._begin(make())

    @property
    def is_ready(self) -> bool:
        """Whether it was seen to be ready since it was made."""
        return bool(self._processes)

    def wait_ready(self) -> None:
        """Until its model is loaded.

        Raises:
            ActorError: it died, or was not ready in time.
        """
        refs = tuple(actor.ready.remote() for actor in self._actors)
        self._processes = self._results(refs, "ready", timeout_s=self._start_timeout_s)

    def submit(self, method: str, *args: Any) -> Refs:
        """Begin a call.

        Returns:
            Ray's references to its results, for `fetch`; one of each actor.
        """
        for watch in self._watches:
            watch.begin()
        first, *others = self._actors
        if others:
            args = tuple(ray.put(arg) for arg in args)  # once, for all of them
        return (getattr(first, method).remote(*args), *(other.take_part.remote(method, *args) for other in others))

    def fetch(self, refs: Refs, method: str, *, timeout_s: float | None = None) -> Any:
        """Wait for a call.

        Args:
            refs: from `submit`.
            method: that was called.
            timeout_s: where it is given, nobody asks for progress meanwhile.

        Raises:
            ActorLost: the actor died, does not answer, or raised something unexpected.
            ActorError: it was not done within `timeout_s`.
            OnlineDPOError: what the call raised.
        """
        return self._results(refs, method, timeout_s=timeout_s)[0]

    def _results(self, refs: Refs, method: str, *, timeout_s: float | None) -> list[Any]:
        """What each of the actors said; raises as `fetch`, as soon as one of them fails."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        found: dict[Any, Any] = {}
        while waiting := [ref for ref in refs if ref not in found]:
            left_s = LOOK_S if deadline is None else max(0.0, deadline - time.monotonic())
            done, _ = ray.wait(waiting, timeout=left_s)
            try:
                found |= {ref: ray.get(ref) for ref in done}
            except ray.exceptions.RayError as error:
                raise self._failure(refs, done[0], error, method) from None
            if not done and deadline is not None:
                raise ActorError(
                    f"{self.name} was not ready after {timeout_s:.0f} s; raise cluster.start_timeout_s, or see whether "
                    f"the cluster has the resources that the config asks for (free now: {ray.available_resources()})"
                    f"{self.last_lines('')}"
                )
            if not done:
                self.look(method)
        return [found[ref] for ref in refs]

    def _failure(self, refs: Refs, failed: Any, error: ray.exceptions.RayError, method: str) -> OnlineDPOError:
        """What the failure of one of the actors means: an error of ours, or that it was lost."""
        raised = raised_by(error)
        if isinstance(raised, OnlineDPOError):
            return raised
        if len(refs) > 1 and raised is not None:
            failed, error = _first_dead(refs) or (failed, error)
            raised = raised_by(error)
        rank = refs.index(failed)
        if raised is None or isinstance(raised, ray.exceptions.RayError):
            cause = cause_of(raised or error, self._less_memory)
        else:
            cause = f"{type(raised).__name__}: {raised}"
        if len(refs) > 1:
            cause = f"rank {rank} of {len(refs)}: {cause}"
        return ActorLost(self, method, cause, str(error), rank)

    def call(self, method: str, *args: Any) -> Any:
        """Make a call and wait for it; raises as `fetch`."""
        return self.fetch(self.submit(method, *args), method)

    def call_until_done(self, method: str, *args: Any) -> Any:
        """A call that may be repeated: where the actor is lost, it is started again and called again.

        Raises:
            ActorError: it was lost too often.
            OnlineDPOError: what the call raised.
        """
        while True:
            try:
                return self.call(method, *args)
            except ActorLost as error:
                self.restart(error)

    def look(self, method: str) -> None:
        """See whether the actor makes progress.

        Raises:
            ActorLost: it has made none for twice as long as is too long.
            ActorError: the local Ray itself is gone.
        """
        _expect_ray()
        # Ranks wait for each other: all are silent where one hangs, and one that has little to do is silent often.
        silence = min([watch.silence() for watch in self._watches])
        deadline = max(watch.deadline_s for watch in self._watches)
        if silence < deadline:
            self._is_silent = False
            return
        since = time.strftime("%H:%M:%S", time.localtime(time.time() - silence))
        if silence >= 2 * deadline:
            raise ActorLost(self, method, f"it has not answered since {since}, for {silence:.0f} s", "")
        if not self._is_silent:
            self._is_silent = True
            waits = f"it is replaced if it says nothing for {deadline:.0f} s more"
            cause = f"it has made no progress since {since}, for {silence:.0f} s"
            self._report(
                Incident(actor=self.name, what="is silent", doing=doing(method), cause=cause, action=waits, detail="")
            )

    def restart(self, error: ActorError) -> None:
        """Put a fresh actor in the place of one that was lost, again where the new one is lost as well.

        Raises:
            ActorError: it was lost too often within an hour.
        """
        while True:
            _expect_ray()
            now = self._clock()
            self._restarted = [when for when in self._restarted if now - when < HOUR_S]
            if len(self._restarted) >= self._max_restarts:
                times = "once" if len(self._restarted) == 1 else f"{len(self._restarted)} times"
                raise ActorError(
                    f"{error}\n{self.name} was started again {times} within the last hour, and cluster.max_restarts "
                    f"is {self._max_restarts}"
                ) from None
            self._restarted.append(now)
            self._report(self._incident(error))
            self.kill()
            self.incarnation += 1
            self._begin(self._make())
            try:
                self.wait_ready()
                if self._after_restart is not None:
                    self._after_restart(self)
                return
            except ActorError as next_error:
                error = next_error

    def kill(self) -> None:
        """End its process, even one that is stopped and would never hear of it."""
        for actor in self._actors:
            with suppress(ray.exceptions.RayError, ValueError):
                ray.kill(actor)
        for pid, node in self._processes:
            with suppress(ray.exceptions.RayError, ProcessLookupError, PermissionError):
                if node == ray.get_runtime_context().get_node_id():
                    _kill(pid)
                else:
                    there = NodeAffinitySchedulingStrategy(node, soft=False)
                    remote = ray.remote(_kill).options(num_cpus=0, scheduling_strategy=there)
                    ray.get(remote.remote(pid), timeout=KILL_S)

    def last_lines(self, fallback: str, rank: int = 0) -> str:
        """The end of the actor's log, or of what Ray said."""
        return last_lines(self._processes[rank][0] if self._processes else None, fallback)

    def _begin(self, made: Any) -> None:
        self._actors: list[Any] = made if isinstance(made, list) else [made]
        self._processes = []
        self._watches = [Watch(actor, floor_s=self._stall_timeout_s, clock=self._clock) for actor in self._actors]
        self._is_silent = False

    def _incident(self, error: ActorError) -> Incident:
        count = f"{len(self._restarted)} of {self._max_restarts} within an hour"
        lost = error if isinstance(error, ActorLost) else None
        return Incident(
            actor=self.name,
            what="was lost",
            doing=doing(lost.method if lost else "ready"),
            cause=lost.cause if lost else str(error).splitlines()[0],
            action=f"it is started again ({count})",
            detail=lost.detail if lost else str(error),
        )


@dataclass(eq=False, slots=True)
class RayTask:
    """A call under way, and how to make it again on a fresh actor."""

    host: Supervised
    method: str
    args: tuple[Any, ...]
    is_repeatable: bool  # on a fresh actor as it is after a restart
    refs: Refs = ()
    incarnation: int = 0

    def begin(self) -> RayTask:
        self.refs, self.incarnation = self.host.submit(self.method, *self.args), self.host.incarnation
        return self


def first_done(tasks: Sequence[RayTask]) -> tuple[RayTask, Any]:
    """Wait for one of the tasks. Where its actor was lost and the task can be repeated, it begins again on a new one.

    Returns:
        The task and its result.

    Raises:
        ActorError: an actor was lost whose task cannot be repeated, or was lost too often.
        OnlineDPOError: what the call raised.
    """
    while True:
        try:
            task = _wait(tasks)
            return task, task.host.fetch(task.refs, task.method)
        except ActorLost as error:
            lost = [task for task in tasks if task.host is error.host]
            if not all(task.is_repeatable for task in lost):
                raise
            if any(task.incarnation == error.host.incarnation for task in lost):
                error.host.restart(error)
            for task in lost:
                task.begin()


def _wait(tasks: Sequence[RayTask]) -> RayTask:
    by_ref = {ref: task for task in tasks for ref in task.refs}
    while True:
        ready, _ = ray.wait(list(by_ref), num_returns=1, timeout=LOOK_S)
        if ready:
            return by_ref[ready[0]]
        for task in {task.host: task for task in reversed(tasks)}.values():  # the first of each actor is under way
            task.host.look(task.method)


def _first_dead(refs: Refs) -> tuple[Any, ray.exceptions.RayError] | None:
    """Of several actors, one whose process has ended; None where all have failed otherwise, or not at all."""
    for ref in ray.wait(list(refs), num_returns=len(refs), timeout=SETTLE_S)[0]:
        try:
            ray.get(ref)
        except ray.exceptions.RayError as error:
            if raised_by(error) is None:
                return ref, error
    return None


def _expect_ray() -> None:
    """Raises ActorError where a process died without which a local Ray can start no actor."""
    if dead := dead_parts():
        raise ActorError(
            f"the local Ray lost its {' and its '.join(dead)} (killed from outside, or for lack of memory), and all "
            f"parts of the run with it"
        )


def _kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
