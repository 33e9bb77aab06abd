"""What a judge asks of a language model, wherever that model runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest:
    """One question to a chat model."""

    messages: tuple[Mapping[str, str], ...]  # {role, content}
    schema: Mapping[str, Any] | None = None  # JSON schema that the answer is held to where the model's host can do it
    max_tokens: int
    temperature: float = 0.0
    seed: int | None = None  # only where temperature is above 0
    num_logprobs: int | None = None  # alternatives of the answer's first token to report; None = none
    code: str | None = None  # that the reply is to repeat; it belongs to this request alone. None = none is asked for


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatReply:
    """What a chat model answered. Only the types in it can be relied on."""

    text: str
    cut_short: bool = False  # by the limit on tokens
    refused: bool = False  # the host says that the model declined, or a filter did
    # (token, nats) of the first token's alternatives; None where the host reports none.
    first_logprobs: tuple[tuple[str, float], ...] | None = None
    # The host knows that this is the reply to this very request; else only the request's code in the text can tell.
    is_tied: bool = True


@dataclass(frozen=True, slots=True)
class CallFailed:
    """A request without an answer, in the place of a `ChatReply`; the reason holds no secret."""

    reason: str


class Chat(Protocol):
    """A chat model."""

    async def ask(self, requests: Sequence[ChatRequest]) -> Sequence[ChatReply | CallFailed]:
        """One reply for each request, in order.

        Raises:
            StopJudging: nothing more may or can be asked; none of these requests was made, or none was answered.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatEngineRequest:
    """The engine that a judge asks its host for; the host returns a `Chat`. One call of `ask` is alone in it."""

    path: str
    dtype: str
    max_model_len: int | None
    gpu_memory_utilization: float
    kv_cache_gib: int  # CPU only
    trust_remote_code: bool = False
    label: str = field(default="engine")  # the section, in messages
