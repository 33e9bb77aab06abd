"""What the place where a judge lives offers it while it is built: engines, and what was spent before."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import NoReturn, Protocol

from judges.llm.chat import Chat, EngineWish
from online_dpo.errors import JudgeError


class Scorer(Protocol):
    """A sequence-classification model in an engine."""

    reads_last_token: bool  # the logits are read at the very last token of a sequence

    def logits(self, rows: Sequence[Sequence[int]]) -> list[list[float]]:
        """A logit for each label, of each sequence of token ids, in order. Not to be called from two threads."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ScorerWish:
    """An engine that a reward model runs in, for its host to provide as a `Scorer`."""

    path: str
    dtype: str
    max_tokens: int  # of a sequence
    batch_tokens: int  # of one forward pass; at least one sequence is taken
    gpu_memory_utilization: float
    kv_cache_gib: int  # CPU only
    trust_remote_code: bool
    label: str  # the judge's field, for messages


def _no_engine(wish: EngineWish | ScorerWish) -> NoReturn:
    raise NeedsEngine(f"{wish.label} needs a vLLM engine, which only a run starts")


class NeedsEngine(JudgeError):
    """A judge is built where no engine can be had, such as in `online-dpo validate`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hosting:
    """Read by the builders of judges, also of those inside other judges."""

    engine: Callable[[EngineWish], Chat] = _no_engine
    scorer: Callable[[ScorerWish], Scorer] = _no_engine
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
