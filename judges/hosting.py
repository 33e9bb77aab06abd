"""What the place where a judge lives offers the judge: engines for its models, and what was counted before."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NoReturn, Protocol

from judges.chat import Chat, ChatEngineRequest
from online_dpo.errors import JudgeError


class Sleeper(Protocol):
    """Holds a GPU's memory, and can do without it while it is not asked."""

    def sleep(self) -> None:
        """Give the GPU's memory away; its content stays in the machine's memory."""
        ...

    def wake(self) -> None:
        """Take it back."""
        ...


class Scorer(Sleeper, Protocol):
    """A sequence-classification model in an engine."""

    reads_last_token: bool  # the logits are read at the very last token of a sequence

    def logits(self, rows: Sequence[Sequence[int]]) -> list[list[float]]:
        """One logit per label for each sequence of token ids, in order. Not to be called from two threads at once."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ScorerRequest:
    """The engine that a reward model asks its host for; the host returns a `Scorer`."""

    path: str
    dtype: str
    max_tokens: int  # of a sequence
    batch_tokens: int  # of one forward pass; at least one sequence is taken
    gpu_memory_utilization: float
    kv_cache_gib: int  # CPU only
    trust_remote_code: bool
    label: str  # the judge's field, for messages


class NeedsEngine(JudgeError):
    """A judge is built where there are no engines, such as in `online-dpo validate`."""


def _no_engine(request: ChatEngineRequest | ScorerRequest) -> NoReturn:
    raise NeedsEngine(f"{request.label} needs a vLLM engine, which only a run starts")


@dataclass(frozen=True, slots=True, kw_only=True)
class Hosting:
    """Given to the builder of every judge, also of those inside other judges."""

    engine: Callable[[ChatEngineRequest], Chat] = _no_engine
    scorer: Callable[[ScorerRequest], Scorer] = _no_engine
    # What judges counted in this run before this process began: name of a count -> its sum.
    counted: Mapping[str, float] = field(default_factory=dict)
    threads: int | None = None  # of torch; None = as the process has it
    # Told of everything that can sleep while others use the GPU.
    can_sleep: Callable[[Sleeper], None] = lambda sleeper: None


NO_HOSTING = Hosting()
"""No engine, and nothing counted before."""
