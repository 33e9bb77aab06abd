"""Conversations that ask for a critique of an answer and for its revision (arXiv:2212.08073, section 3)."""

from __future__ import annotations

from collections.abc import Sequence

from online_dpo.types import Message, Prompt, derive_seed


def principle_for(principles: Sequence[str], seed: int, prompt_id: str, sample_index: int) -> str:
    """The request for a critique that an answer gets: drawn by the run's seed, the same in every process."""
    return principles[derive_seed(seed, "principle", prompt_id, sample_index) % len(principles)]


def critique_messages(prompt: Prompt, answer: str, principle: str) -> tuple[Message, ...]:
    """What asks for a critique: the conversation with the answer, and the request. A plain prompt is a user's turn."""
    asked = prompt.messages or ({"role": "user", "content": prompt.text or ""},)
    return (*asked, {"role": "assistant", "content": answer}, {"role": "user", "content": principle})


def revision_messages(critique: Sequence[Message], said: str, request: str) -> tuple[Message, ...]:
    """What asks for the revision, after the critique."""
    return (*critique, {"role": "assistant", "content": said}, {"role": "user", "content": request})


def critique_text(prompt: Prompt, answer: str, principle: str) -> str:
    """The same as plain text, for a policy that continues texts."""
    return f"{prompt.text}{answer}\n\n{principle}\n\n"


def revision_text(critique: str, said: str, request: str, prompt: Prompt) -> str:
    """The same as plain text. It ends with the prompt, so that what follows is an answer to it, token for token."""
    return f"{critique}{said}\n\n{request}\n\n{prompt.text}"
