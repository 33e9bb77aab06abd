"""An actor that a run works with, under one name however often its process is replaced."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray

from actors.session import fetch
from online_dpo.errors import ActorError


class Supervised:
    """One actor of a run. Where it may be restarted, whoever waits for one of its calls replaces it and calls again.

    Attributes:
        restarts: how often it was replaced.
    """

    def __init__(
        self,
        name: str,
        make: Callable[[], Any],
        *,
        start_timeout_s: float,
        max_restarts: int = 0,
        setting: str = "",
        after_restart: Callable[[Supervised], None] | None = None,
    ) -> None:
        """Make the actor; it loads in the background.

        Args:
            name: in messages, such as `generator 0`.
            make: a new actor; called again for each restart.
            start_timeout_s: how long it may take to be placed and ready.
            max_restarts: after so many the next failure ends the run.
            setting: the config field of `max_restarts`, for messages.
            after_restart: brings a new actor to where the old one was.
        """
        self.name, self.restarts = name, 0
        self._make, self._start_timeout_s = make, start_timeout_s
        self._max_restarts, self._setting, self._after_restart = max_restarts, setting, after_restart
        self._actor, self._pid = make(), None

    def wait_ready(self) -> None:
        """Until its model is loaded.

        Raises:
            ActorError: it died, or was not ready in time.
        """
        self._pid = fetch(self._actor.ready.remote(), self.name, timeout_s=self._start_timeout_s)

    def submit(self, method: str, *args: Any) -> Any:
        """Begin a call; what comes back is Ray's reference to its result."""
        return getattr(self._actor, method).remote(*args)

    def fetch(self, ref: Any, *, timeout_s: float | None = None) -> Any:
        """Wait for a call.

        Raises:
            ActorError: the actor died, was not ready in time, or raised something unexpected.
            OnlineDPOError: what the call raised.
        """
        return fetch(ref, self.name, pid=self._pid, timeout_s=timeout_s)

    def call(self, method: str, *args: Any) -> Any:
        """Make a call and wait for it; raises as `fetch`."""
        return self.fetch(self.submit(method, *args))

    @property
    def may_restart(self) -> bool:
        """Whether it is replaced where it fails, up to a limit."""
        return bool(self._setting)

    def restart(self, error: ActorError) -> None:
        """Put a fresh actor in the place of one that failed.

        Raises:
            ActorError: it failed too often, or the new one does not come up.
        """
        if self.restarts >= self._max_restarts:
            raise ActorError(
                f"{error}\n{self.name} was restarted {self.restarts} times; {self._setting} is {self._max_restarts}"
            ) from None
        self.restarts += 1
        self.kill()
        self._actor, self._pid = self._make(), None
        self.wait_ready()
        if self._after_restart is not None:
            self._after_restart(self)

    def kill(self) -> None:
        ray.kill(self._actor)


@dataclass(eq=False, slots=True)
class RayTask:
    """A call under way, and how to make it again on a fresh actor."""

    host: Supervised
    method: str
    args: tuple[Any, ...]
    ref: Any = None

    def begin(self) -> RayTask:
        self.ref = self.host.submit(self.method, *self.args)
        return self


def first_done(tasks: list[RayTask]) -> tuple[RayTask, Any]:
    """Wait for one of the tasks. Where its actor died and may be restarted, its tasks begin again on the new one.

    Returns:
        The task and its result.

    Raises:
        ActorError: an actor failed that may not be restarted, or not again.
        OnlineDPOError: what the call raised.
    """
    while True:
        by_ref = {task.ref: task for task in tasks}
        ready, _ = ray.wait(list(by_ref), num_returns=1)
        task = by_ref[ready[0]]
        try:
            return task, task.host.fetch(task.ref)
        except ActorError as error:
            if not task.host.may_restart:
                raise
            task.host.restart(error)
            for other in tasks:
                if other.host is task.host:
                    other.begin()
