"""Prompt and completion -> the token ids that a sequence-classification model reads.

The judge and the training of such a model share it, so that a model is asked with what it was trained on.
"""

from __future__ import annotations

from typing import Any

from online_dpo.errors import JudgeError
from online_dpo.types import PromptContent


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
    if tokenizer.chat_template is None:
        raise JudgeError(
            "has no chat template, and the prompts are chat messages; choose a reward model for chats, or use plain "
            "text prompts"
        )
    messages = [*prompt, {"role": "assistant", "content": completion}]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    # The template has written the special tokens already, a BOS among them.
    return list(tokenizer(text, add_special_tokens=False, verbose=False).input_ids)


def cut_input(tokenizer: Any, ids: list[int], max_tokens: int) -> list[int]:
    """At most `max_tokens`: the start of the prompt goes first, never the end, nor a leading BOS or CLS."""
    if len(ids) <= max_tokens:
        return ids
    keep = 1 if ids[0] in (tokenizer.bos_token_id, tokenizer.cls_token_id) else 0
    return ids[:keep] + ids[len(ids) - max_tokens + keep :]
