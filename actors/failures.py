"""What became of an actor, in a sentence of ours; Ray's own paragraphs go to a log."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

import ray

DOING = {
    "ready": "starting",
    "try_it": "being tried",
    "push": "taking new weights",
    "probe": "scoring the probe set",
    "sample": "sampling",
    "sleep": "giving its GPU's memory away",
    "wake": "taking its GPU's memory back",
    "release_memory": "giving spare GPU memory back",
    "judge_shard": "judging",
    "score": "scoring completions",
    "check_logps": "scoring what the generators are compared on",
    "reference_logps": "scoring under the reference",
    "begin_round": "taking the round's items",
    "step": "taking an optimizer step",
    "checkpoint": "writing a checkpoint",
    "restore": "reading a checkpoint",
    "policy": "writing its adapter",
}
"""Method of an actor -> what it was doing, in messages."""

_MEMORY = re.compile(r"was ([\d.]+ ?[KMGT]?i?B)(?: used)? / ([\d.]+ ?[KMGT]?i?B)")
MAX_CHARACTERS = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Incident:
    """An actor that was lost or is silent, and what is done about it."""

    actor: str
    what: Literal["was lost", "is silent"]
    doing: str
    cause: str
    action: str
    detail: str  # what Ray said

    @property
    def sentence(self) -> str:
        return f"{self.actor} {self.what} while {self.doing}: {self.cause}; {self.action}"


def doing(method: str) -> str:
    """What an actor does in a method, after `while`."""
    return DOING.get(method, f"in its call {method}")


def cause_of(error: Exception, less_memory: str) -> str:
    """Why an actor was lost, as far as Ray knows.

    Args:
        error: of Ray.
        less_memory: settings that make the actor need less memory.
    """
    text = str(error)
    used = _MEMORY.search(text)
    if used is not None:
        return f"its node ran out of memory ({used[1]} of {used[2]} were used); lower {less_memory}"
    if isinstance(error, ray.exceptions.OutOfMemoryError):
        return f"its node ran out of memory; lower {less_memory}"
    if isinstance(error, ray.exceptions.NodeDiedError) or "node has died" in text or "node was terminated" in text:
        return "its node died"
    if isinstance(error, ray.exceptions.LocalRayletDiedError):
        return "the raylet, Ray's own process on its node, died"
    if isinstance(error, ray.exceptions.ActorUnavailableError):
        return "Ray cannot reach it"
    if isinstance(error, ray.exceptions.ActorUnschedulableError | ray.exceptions.RuntimeEnvSetupError):
        return f"Ray cannot place it ({_short(text)})"
    if "error raised in its creation task" in text:
        return f"it could not be built ({_short(text.strip().splitlines()[-1])})"
    if isinstance(error, ray.exceptions.RayActorError):
        return (
            "its process ended without a word, as when it is killed from outside, when the kernel is short of memory, "
            "or when native code crashes"
        )
    return f"{type(error).__name__}: {_short(text)}"


def raised_by(error: Exception) -> Exception | None:
    """What was raised in the call, or in the constructor of its actor, that one of Ray's errors tells of."""
    inner = error if isinstance(error, ray.exceptions.RayTaskError) else next(iter(error.args), None)
    return getattr(inner, "cause", None) if isinstance(inner, ray.exceptions.RayTaskError) else None


def _short(text: str) -> str:
    return " ".join(text.split())[:MAX_CHARACTERS]
