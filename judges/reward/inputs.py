"""Prompt and completion -> the token ids that a classification model reads.

The judge and the training of such a model share it, so that a model is asked with what it was trained on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from online_dpo.errors import JudgeError
from online_dpo.types import Message, PromptContent


def encode_input(tokenizer: Any, prompt: PromptContent, completion: str) -> list[int]:
    """`[T]` ids: plain text is joined and gets the tokenizer's special tokens, chats are written by its template.

    Args:
        tokenizer: of the model, from transformers.
        prompt: text, or chat messages.
        completion: the answer to it.

    Raises:
        JudgeError: the prompt is a chat, and the tokenizer has no chat template.
    """
    if isinstance(prompt, str):
        return list(tokenizer(prompt + completion, verbose=False).input_ids)
    # The template has written the special tokens already, a BOS among them.
    return list(tokenizer(write_chat(tokenizer, prompt, completion), add_special_tokens=False, verbose=False).input_ids)


def write_chat(tokenizer: Any, prompt: Sequence[Message], answer: str) -> str:
    """A chat and the answer to it as the model's template writes them, special tokens included.

    Raises:
        JudgeError: the tokenizer has no chat template.
    """
    if tokenizer.chat_template is None:
        raise JudgeError(
            "has no chat template, and the prompts are chat messages; choose a reward model for chats, or use plain "
            "text prompts"
        )
    return str(tokenizer.apply_chat_template([*prompt, {"role": "assistant", "content": answer}], tokenize=False))


def cut_input(tokenizer: Any, ids: list[int], max_tokens: int) -> list[int]:
    """At most `max_tokens`: the start of the prompt goes first, never the end, nor a leading BOS or CLS."""
    keep, number = what_is_cut(tokenizer, ids, max_tokens)
    return ids[:keep] + ids[keep + number :]


def what_is_cut(tokenizer: Any, ids: Sequence[int], max_tokens: int) -> tuple[int, int]:
    """How many tokens stay at the start, and how many after them go, as `cut_input` does it."""
    if len(ids) <= max_tokens:
        return 0, 0
    keep = 1 if ids[0] in (tokenizer.bos_token_id, tokenizer.cls_token_id) else 0
    return keep, len(ids) - max_tokens
