"""What the place where a judge lives offers it while it is built: an engine, and what was spent before."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field

from judges.llm.chat import Chat, EngineWish
from online_dpo.errors import JudgeError


def _no_engine(wish: EngineWish) -> Chat:
    raise NeedsEngine(f"{wish.label} needs a vLLM engine, which only a run starts")


class NeedsEngine(JudgeError):
    """A judge is built where no engine can be had, such as in `online-dpo validate`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hosting:
    """Read by the builders of judges, also of those inside other judges."""

    engine: Callable[[EngineWish], Chat] = _no_engine
    # What judges counted in this run before this process began: name of a count -> its sum.
    counted: Mapping[str, float] = field(default_factory=dict)


_HOSTING: ContextVar[Hosting | None] = ContextVar("hosting of the judge being built", default=None)


def hosting() -> Hosting:
    """Of the judge that is being built; nothing at all outside `hosted`."""
    return _HOSTING.get() or Hosting()


@contextlib.contextmanager
def hosted(offer: Hosting) -> Iterator[None]:
    """Judges built inside this block are offered this."""
    token = _HOSTING.set(offer)
    try:
        yield
    finally:
        _HOSTING.reset(token)
