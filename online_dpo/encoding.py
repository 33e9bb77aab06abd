"""Text and chats -> token ids."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from online_dpo.errors import ConfigError, ModelError
from online_dpo.types import Message

_TEMPLATE_ARGUMENTS_IN_USE = ("conversation", "tokenize", "add_generation_prompt", "continue_final_message")


class PromptEncoder:
    """Text or chat messages -> token ids that a completion can follow."""

    def __init__(self, tokenizer: Any, chat_template_kwargs: Mapping[str, Any]) -> None:
        """Use one tokenizer for all prompts of a run.

        Args:
            tokenizer: a Transformers tokenizer.
            chat_template_kwargs: further arguments of its chat template.

        Raises:
            ConfigError: `chat_template_kwargs` has an argument that is not free.
        """
        taken = [name for name in _TEMPLATE_ARGUMENTS_IN_USE if name in chat_template_kwargs]
        if taken:
            raise ConfigError(
                f"prompts.chat_template_kwargs sets {taken[0]}, which is fixed by what a prompt is; remove it"
            )
        self.has_chat_template = bool(
            getattr(tokenizer, "chat_template", None) or "chat_template" in chat_template_kwargs
        )
        self._tokenizer = tokenizer
        self._kwargs = dict(chat_template_kwargs)

    def encode_text(self, text: str) -> tuple[int, ...]:
        """`[T]` ids of plain text with the tokenizer's special tokens, and not a second BOS if it begins with one."""
        tokenizer = self._tokenizer
        body, full = self._tokenize(text), list(tokenizer(text, verbose=False)["input_ids"])
        # From the right, so that in a text that is nothing but BOS the first of the two counts as the added one.
        start = next((i for i in range(len(full) - len(body), -1, -1) if full[i : i + len(body)] == body), None)
        if start is None:
            raise ModelError(
                f"the tokenizer {type(tokenizer).__name__} tokenises text differently when it adds special tokens, so "
                f"that prompts have no fixed meaning; set model.path to a model with another tokenizer"
            )
        before, after = full[:start], full[start + len(body) :]
        if before == [tokenizer.bos_token_id] and text.startswith(tokenizer.bos_token):
            before = []
        # An answer cannot follow an end of sequence; some tokenizers append one to whatever they are given.
        after = [token_id for token_id in after if token_id != tokenizer.eos_token_id]
        return (*before, *body, *after) if body else ()

    def encode_chat(self, messages: tuple[Message, ...]) -> tuple[int, ...]:
        """`[T]` ids of a chat up to where the assistant answers; special tokens are the template's alone."""
        rendered = self._tokenizer.apply_chat_template(
            [dict(message) for message in messages], tokenize=False, add_generation_prompt=True, **self._kwargs
        )
        return tuple(self._tokenize(rendered))

    def _tokenize(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
