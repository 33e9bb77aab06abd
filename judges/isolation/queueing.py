"""Small pieces of work for a child process, one at a time, so that each fails by itself."""

from __future__ import annotations

import asyncio
from typing import Any

from judges.isolation.failures import Interrupted, ProcessEnded, RaisedInChild
from judges.isolation.process import Child

FAILURES = (TimeoutError, ProcessEnded, RaisedInChild, Interrupted)
"""What a piece of work may end with, besides a `JudgeError`."""


class OneByOne:
    """Calls that wait for each other; the time of each begins when its turn comes."""

    def __init__(self, child: Child, *, timeout_s: float) -> None:
        """Starts nothing yet; `timeout_s` is for each piece of work."""
        self.child, self._timeout_s = child, timeout_s
        self._turn = asyncio.Lock()

    async def ask(self, method: str, *arguments: Any) -> Any:
        """As `Child.call`; raises `JudgeError` or one of `FAILURES`."""
        async with self._turn:
            try:
                return await self._call(method, arguments)
            except Interrupted:  # by what somebody gave up before, which was killed meanwhile
                return await self._call(method, arguments)

    async def _call(self, method: str, arguments: tuple[Any, ...]) -> Any:
        try:
            return await self.child.call(method, *arguments, timeout_s=self._timeout_s)
        except TimeoutError:
            raise TimeoutError(f"not done within {self._timeout_s:g} s") from None
