"""Whole conversations -> token ids, and which of them are the assistant's."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from online_dpo.data.encoding import AnswerEncoder
from online_dpo.types import Message

GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
"""How a chat template says where an assistant's turn begins, as transformers looks for it."""

_NO_TURNS = (
    "so that the assistant's turns cannot be told from the others; give a template that marks them with "
    "{% generation %}, as chat_template under chat_template_kwargs"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedConversation:
    """A conversation up to the end of its last answer."""

    token_ids: tuple[int, ...]  # [T]
    answers: tuple[tuple[int, int], ...]  # of each of the assistant's turns: its first token, and the one behind it
    num_split: int  # turns at whose boundary the tokenizer would have joined two tokens


def encode_conversation(encoder: AnswerEncoder, messages: Sequence[Message]) -> EncodedConversation:
    """Find the tokens of every one of the assistant's turns, its end of sequence included.

    Where the chat template marks them with `{% generation %}`, that is what counts. Otherwise a turn is what the
    template writes when the assistant's message is added to what it writes for the messages before. This is refused
    where a longer conversation does not begin as a shorter one, as with templates that leave out earlier reasoning.

    Args:
        encoder: of the policy's tokenizer.
        messages: of which the last is the assistant's, and the first is not.

    Raises:
        ValueError: the template does not say where the turns are.
    """
    found = _marked(encoder, messages) if encoder.marks_answers(GENERATION) else _by_prefixes(encoder, messages)
    *_, (start, stop) = found.answers
    if stop != len(found.token_ids):
        found = replace(found, token_ids=found.token_ids[:stop])
    ended = encoder.ended(found.token_ids)
    return replace(found, token_ids=ended, answers=(*found.answers[:-1], (start, len(ended))))


def _marked(encoder: AnswerEncoder, messages: Sequence[Message]) -> EncodedConversation:
    ids, flags = encoder.marked_conversation(messages)
    edges = [i for i, (flag, before) in enumerate(zip([*flags, 0], [0, *flags], strict=True)) if flag != before]
    answers = tuple(zip(edges[::2], edges[1::2], strict=True))
    expected = sum(message["role"] == "assistant" for message in messages)
    if len(answers) != expected or not answers[0][0]:
        raise ValueError(
            f"its {{% generation %}} marks {len(answers)} stretches of tokens, the first at token "
            f"{answers[0][0] if answers else 0}, and the assistant has {expected} turns, {_NO_TURNS}"
        )
    return EncodedConversation(token_ids=ids, answers=answers, num_split=0)


def _by_prefixes(encoder: AnswerEncoder, messages: Sequence[Message]) -> EncodedConversation:
    whole = encoder.render(messages, add_generation_prompt=False)
    cuts: list[tuple[int, int]] = []  # characters of each turn
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = encoder.render(messages[:index], add_generation_prompt=True)
        after = encoder.render(messages[: index + 1], add_generation_prompt=False)
        if not (after.startswith(before) and whole.startswith(after)):
            raise ValueError(
                f"it does not begin a conversation as it begins the same one without its last messages, {_NO_TURNS}"
            )
        cuts.append((len(before), len(after)))
    edges = [edge for cut in cuts for edge in cut]
    ids, places, num_split = encoder.tokenize_in_parts(whole, edges)
    answers = [
        (start, start + len(encoder.up_to_end(ids[start:stop])))
        for start, stop in zip(places[::2], places[1::2], strict=True)
    ]
    return EncodedConversation(token_ids=ids, answers=tuple(answers), num_split=num_split)
