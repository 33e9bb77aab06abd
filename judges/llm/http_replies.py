"""The body of a chat completion -> `ChatReply`. Whatever is missing or of another type makes it malformed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from judges.chat import ChatReply

Usage = tuple[int, int]
"""Tokens of the prompt and of the answer, as the server counts them."""


class Malformed(Exception):
    """No chat completion."""


class RepeatedKey(ValueError):
    """A JSON object has two values under one key."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server says."""

    reply: ChatReply
    usage: Usage | None  # None where it does not tell, or tells nonsense; the worst case is then charged
    name: str  # its `id`


def read_reply(body: str) -> Answer:
    """The one choice, and what the server says it cost.

    Raises:
        Malformed: it is not JSON, says something twice, has no choice or several, or no text.
    """
    try:
        found = json.loads(body, object_pairs_hook=without_repeats)
    except RepeatedKey:
        raise Malformed("a key occurs twice in it") from None
    except (ValueError, RecursionError):
        raise Malformed("it is not JSON") from None
    choices = found.get("choices") if isinstance(found, dict) else None
    if not isinstance(choices, list) or not choices:
        raise Malformed("it has no choices")
    if len(choices) > 1:
        raise Malformed("it has several choices")
    choice = choices[0] if isinstance(choices[0], dict) else {}
    message = choice.get("message")
    if not isinstance(message, dict):
        raise Malformed("its choice has no message")
    text, reason = message.get("content"), choice.get("finish_reason")
    refused = reason == "content_filter" or bool(message.get("refusal"))
    if not isinstance(text, str):
        if text is not None:
            raise Malformed("its message has no text")
        text = ""
    reply = ChatReply(
        text=text, cut_short=reason == "length", refused=refused, first_logprobs=_first_logprobs(choice.get("logprobs"))
    )
    name = found.get("id")
    return Answer(reply, _usage(found.get("usage")), name if isinstance(name, str) else "")


def without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """For `json.loads`: an object whose keys are all different.

    Raises:
        RepeatedKey: they are not, and which of two values is meant is anybody's guess.
    """
    found = dict(pairs)
    if len(found) != len(pairs):
        raise RepeatedKey
    return found


def _first_logprobs(logprobs: Any) -> tuple[tuple[str, float], ...] | None:
    content = logprobs.get("content") if isinstance(logprobs, dict) else None
    first = content[0] if isinstance(content, list) and content else None
    alternatives = first.get("top_logprobs") if isinstance(first, dict) else None
    if not isinstance(alternatives, list):
        return None
    found = []
    for entry in alternatives:
        token, logprob = (entry.get("token"), entry.get("logprob")) if isinstance(entry, dict) else (None, None)
        if not isinstance(token, str) or isinstance(logprob, bool) or not isinstance(logprob, (int, float)):
            raise Malformed("its log-probs have no tokens and numbers")
        try:
            found.append((token, float(logprob)))
        except OverflowError:  # a whole number of 400 digits
            raise Malformed("its log-probs have no tokens and numbers") from None
    return tuple(found)


def _usage(usage: Any) -> Usage | None:
    if not isinstance(usage, dict):
        return None
    numbers = [usage.get("prompt_tokens"), usage.get("completion_tokens")]
    if not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in numbers) or not numbers[0]:
        return None
    return numbers[0], numbers[1]  # type: ignore[return-value]
