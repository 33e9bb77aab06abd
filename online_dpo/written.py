"""What a writer of candidates gives for a shard, before its text is tokenised."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

Outcome: TypeAlias = Literal[
    "kept",
    "missing",  # the row has no text in the column
    "failed",  # no reply, also after retries
    "refused",  # the model declined, or a filter of its host did
    "over_budget",
    "no_sample",  # of revise: the policy's sample is empty, or its conversation is too long for the policy
    "empty",
    "control_tokens",  # the text would become control tokens of the policy
    "template",  # the policy's chat template does not render it
    "too_long",  # for sampling.max_tokens
]
"""What becomes of every answer that a writer is asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenText:
    """One answer of a writer, or why there is none."""

    prompt_id: str
    number: int  # 0 .. N-1 within the writer's answers to the prompt
    text: str = ""
    is_cut: bool = False  # by a limit on tokens
    outcome: Outcome = "kept"  # as far as the writer knows
    detail: str | None = None  # what is known about a failure


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What a writer's host gives back for a shard."""

    texts: tuple[WrittenText, ...]  # in prompt order
    counters: Mapping[str, int | float]  # requests, tokens, retries, ... of this shard
    stopped: str | None = None  # why nothing is said about some of the prompts; None = something is about all
