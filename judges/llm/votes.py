"""Replies -> votes. An unreadable reply is never guessed at: it becomes an abstention with its reason."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from judges.chat import CallFailed, ChatReply
from judges.llm.http_replies import without_repeats
from judges.llm.prompts import CODE, WHY, ReplyFormat
from judges.protocol import Abstain

LABELS: Mapping[str, float] = {"A": 1.0, "B": 0.0, "tie": 0.5}
"""What a reply may say -> the probability that the answer presented first is the better one."""

GRADES: Mapping[str, float] = {letter: float(i) for i, letter in enumerate("ABCDEFGHIJ", start=1)}
"""Scores as letters: "10" is two tokens in some vocabularies, and "1" would then stand for both 1 and 10."""

ANOTHER_CODE = Abstain("unreadable: a reply without the code of its request")

LONGEST = 2000
"""The most characters of a reply that is read; a verdict has a few dozen, a sentence about it a few hundred."""


def read_object(
    reply: ChatReply | CallFailed, wanted: ReplyFormat, *, longest: int = LONGEST
) -> dict[str, Any] | Abstain:
    """The reply as the one JSON object with exactly the keys that were asked for; else why it is none.

    Args:
        reply: of the model.
        wanted: what was asked for. A verdict that someone wrote into a judged answer does not have its key.
        longest: the most characters that are read.
    """
    if isinstance(reply, CallFailed) or reply.refused:
        return _no_vote(reply)
    if reply.cut_short:
        return Abstain("unreadable: a reply cut short by max_tokens")
    text = reply.text.strip()
    if not text:
        return Abstain("unreadable: an empty reply")
    if len(text) > longest:
        return Abstain(f"unreadable: a reply of more than {longest} characters")
    try:
        found = json.loads(text, object_pairs_hook=without_repeats, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return Abstain("unreadable: a reply that is not JSON")
    if not isinstance(found, dict) or found.keys() != wanted.keys or not isinstance(found.get(WHY, ""), str):
        return Abstain("unreadable: JSON of another form")
    if wanted.code is not None and not reply.is_tied and found[CODE] != wanted.code:
        return ANOTHER_CODE
    return found


def read_json(reply: ChatReply | CallFailed, wanted: ReplyFormat) -> float | Abstain:
    """The vote in a reply that is exactly one JSON object with exactly the keys that were asked for.

    Args:
        reply: of the model.
        wanted: what was asked for. A verdict that someone wrote into a judged answer does not have its key. Pairwise:
            one of LABELS, spelled like that; pointwise: a whole number from 1 to 10.

    Returns:
        The probability that the first answer wins, or the score; else why there is none.
    """
    found = read_object(reply, wanted)
    if isinstance(found, Abstain):
        return found
    value = found[wanted.key]
    if wanted.form == "pairwise":
        return LABELS[value] if isinstance(value, str) and value in LABELS else Abstain("unreadable: no known verdict")
    is_score = isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 10
    return float(value) if is_score else Abstain("unreadable: no whole number from 1 to 10")


def read_why(reply: ChatReply) -> str:
    """What the model wrote for its verdict, of a reply that `read_json` has read."""
    return str(json.loads(reply.text.strip())[WHY]).strip()


def read_token(reply: ChatReply | CallFailed, wanted: ReplyFormat, *, min_mass: float) -> float | Abstain:
    """The vote in the probabilities of the reply's first token.

    Args:
        reply: of the model.
        wanted: what was asked for. Pairwise: `P(A) / (P(A) + P(B))`; pointwise: the mean score under the letters'
            probabilities.
        min_mass: probability that must lie on the letters together.

    Returns:
        The probability that the first answer wins, or the score; else why there is none.
    """
    if isinstance(reply, CallFailed) or reply.refused:
        return _no_vote(reply)
    if not reply.first_logprobs:
        return Abstain("the endpoint reports no log-probs, which verdict: token needs", kind="failed")
    if wanted.code is not None and not reply.is_tied and wanted.code not in reply.text:
        return ANOTHER_CODE
    values = GRADES if wanted.form == "pointwise" else {"A": 1.0, "B": 0.0}
    mass = dict.fromkeys(values, 0.0)
    for token, logprob in reply.first_logprobs:
        letter = token.strip(" \n\t\u0120\u2581")  # some hosts show a space as a letter of their vocabulary
        if not logprob <= 1e-3:  # NaN too
            return Abstain("unreadable: a log-prob that is none")
        if letter in mass:
            mass[letter] += math.exp(logprob)
    total = math.fsum(mass.values())
    if total < min_mass or total == 0.0:
        return Abstain("unreadable: another token than an answer's letter")
    mean = math.fsum(values[letter] * p for letter, p in mass.items()) / total
    return min(max(mean, min(values.values())), max(values.values()))  # rounding may leave the range


def _no_vote(reply: ChatReply | CallFailed) -> Abstain:
    if isinstance(reply, CallFailed):
        return Abstain(reply.reason, kind="failed")
    return Abstain("refused by the model")


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON")
