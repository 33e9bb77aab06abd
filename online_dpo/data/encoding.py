"""Text and chats -> token ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from re import Pattern
from typing import Any

from online_dpo.errors import ConfigError, ModelError, first_line
from online_dpo.types import Message

_TEMPLATE_ARGUMENTS_IN_USE = ("conversation", "tokenize", "add_generation_prompt", "continue_final_message")
_TWO_TEXTS = ("What is two plus two?", "Name a colour.")


def is_blank(content: str | Sequence[Mapping[str, Any]]) -> bool:
    """Whether a text or a chat has nothing but whitespace."""
    texts = [content] if isinstance(content, str) else [message["content"] for message in content]
    return not any(text.strip() for text in texts)


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedAnswer:
    """A written answer as a model would have to sample it after its prompt."""

    token_ids: tuple[int, ...]  # [T]
    is_split: bool  # the tokenizer would have joined the prompt's end and the answer's beginning


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
        return tuple(self._tokenize(self.render(messages, add_generation_prompt=True)))

    def check_template(self, messages: Sequence[Message], label: str) -> None:
        """Refuse a chat template that renders no answer to a chat, or the same text whatever is said.

        Args:
            messages: a prompt's.
            label: the start of errors.

        Raises:
            ModelError: it fails, or leaves out what the last message or its answer says.
        """
        remedy = "correct chat_template.jinja or chat_template in tokenizer_config.json, or use prompts of plain text"
        last: Message = messages[-1]
        try:
            asked = {
                self.render([*messages[:-1], {"role": last["role"], "content": text}], add_generation_prompt=True)
                for text in _TWO_TEXTS
            }
            answered = {
                self.render([*messages, {"role": "assistant", "content": text}], add_generation_prompt=False)
                for text in _TWO_TEXTS
            }
        # A template raises what its author chose.
        except Exception as error:
            raise ModelError(
                f"{label}, whose chat template does not render a prompt and its answer ({first_line(error)}); {remedy}"
            ) from error
        if len(asked) == 1 or len(answered) == 1:
            what = "a prompt" if len(asked) == 1 else "an answer"
            raise ModelError(f"{label}, whose chat template renders the same text whatever {what} says; {remedy}")

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
        """A conversation as the chat template writes it."""
        rendered: str = self._tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            **self._kwargs,
        )
        return rendered

    def _tokenize(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


class AnswerEncoder(PromptEncoder):
    """Written answers, besides prompts -> token ids.

    A prompt's ids never depend on its answer: they are those that a policy would be asked with. Where the ids of
    prompt and answer together begin with them, the answer is the rest, so that both are what the tokenizer gives for
    the whole. Where a token would reach across the boundary, the answer is tokenised alone.
    """

    def __init__(
        self,
        tokenizer: Any,
        chat_template_kwargs: Mapping[str, Any],
        *,
        eos_token_ids: Sequence[int],
        append_eos: bool,
    ) -> None:
        """Use one tokenizer for all answers of a source.

        Args:
            tokenizer: a Transformers tokenizer.
            chat_template_kwargs: further arguments of its chat template.
            eos_token_ids: all that end an answer of the model.
            append_eos: end every answer that does not end with one of them with the tokenizer's own.

        Raises:
            ConfigError: as for prompts.
        """
        super().__init__(tokenizer, chat_template_kwargs)
        self._eos_token_ids = frozenset(eos_token_ids)
        self._append_eos = append_eos

    def encode_text_answer(self, prompt: str, prompt_ids: tuple[int, ...], answer: str) -> EncodedAnswer:
        """`[T]` ids of what follows a plain prompt; nothing is put between the two, and nothing behind."""
        return self._ended(self._answer(prompt_ids, self.encode_text(prompt + answer), answer))

    def encode_chat_answer(
        self, messages: tuple[Message, ...], prompt_ids: tuple[int, ...], answer: str
    ) -> EncodedAnswer:
        """`[T]` ids of an assistant's message as the chat template writes it, up to its end of sequence.

        What a template puts behind that, such as the line feed of ChatML, no policy would sample.

        Raises:
            ValueError: the template writes the prompt differently when an answer follows.
        """
        prompt = self.render(messages, add_generation_prompt=True)
        turn: Message = {"role": "assistant", "content": answer}
        whole = self.render([*messages, turn], add_generation_prompt=False)
        if not whole.startswith(prompt):
            raise ValueError("it does not begin a conversation with an answer as it begins the same one without")
        encoded = self._answer(prompt_ids, tuple(self._tokenize(whole)), whole[len(prompt) :])
        return self._ended(replace(encoded, token_ids=self.up_to_end(encoded.token_ids)))

    def up_to_end(self, ids: tuple[int, ...]) -> tuple[int, ...]:
        """A turn's ids without the whitespace that a template puts behind its end of sequence."""
        ends = [i for i, token_id in enumerate(ids) if token_id in self._eos_token_ids]
        return ids[: ends[-1] + 1] if ends and not self.decode(ids[ends[-1] + 1 :]).strip() else ids

    def marks_answers(self, marker: Pattern[str]) -> bool:
        """Whether the chat template has the marker of an assistant's turn, and the tokenizer can follow it."""
        template = self._tokenizer.get_chat_template(self._kwargs.get("chat_template"))
        return bool(self._tokenizer.is_fast and marker.search(template))

    def marked_conversation(self, messages: Sequence[Message]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """`[T]` ids of a conversation, and 1 for each that the chat template marks as the assistant's."""
        found = self._tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
            **self._kwargs,
        )
        return tuple(found["input_ids"]), tuple(found["assistant_masks"])

    def tokenize_in_parts(self, text: str, edges: Sequence[int]) -> tuple[tuple[int, ...], list[int], int]:
        """Ids of a text, the place among them of each edge between two characters, and how many edges split a token.

        Where no edge does, the ids are those of the whole text; otherwise those of its parts.
        """
        whole = tuple(self._tokenize(text))
        starts = [tuple(self._tokenize(text[:edge])) for edge in edges]
        num_split = sum(whole[: len(start)] != start for start in starts)
        if not num_split:
            return whole, [len(start) for start in starts], 0
        ids: list[int] = []
        places = []
        for begin, end in zip([0, *edges], [*edges, len(text)], strict=True):
            ids += self._tokenize(text[begin:end])
            places.append(len(ids))
        return tuple(ids), places[:-1], num_split

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """Text of tokens."""
        text: str = self._tokenizer.decode(list(token_ids), skip_special_tokens=skip_special_tokens)
        return text

    def _answer(self, prompt_ids: tuple[int, ...], whole_ids: tuple[int, ...], answer: str) -> EncodedAnswer:
        is_split = whole_ids[: len(prompt_ids)] != prompt_ids
        ids = tuple(self._tokenize(answer)) if is_split else whole_ids[len(prompt_ids) :]
        return EncodedAnswer(token_ids=ids, is_split=is_split)

    def _ended(self, answer: EncodedAnswer) -> EncodedAnswer:
        return replace(answer, token_ids=self.ended(answer.token_ids))

    def ended(self, ids: tuple[int, ...]) -> tuple[int, ...]:
        """Ids of an answer with an end of sequence, where it lacks one and shall have it."""
        if not self._append_eos or not ids or ids[-1] in self._eos_token_ids:
            return ids
        return (*ids, self._tokenizer.eos_token_id)
