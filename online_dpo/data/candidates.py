"""Answers that others wrote -> token ids that may follow the policy's prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from online_dpo.data.encoding import AnswerEncoder, EncodedAnswer, is_blank
from online_dpo.errors import ModelError, first_line
from online_dpo.models.tokenizer import control_ids
from online_dpo.types import Prompt
from online_dpo.written import Outcome

_TRIAL = "x"


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedCandidate:
    """An answer as it is trained on, and as judges read it."""

    token_ids: tuple[int, ...]  # [T]
    text: str
    is_split: bool  # the tokenizer would have joined the prompt's end and the answer's beginning


class CandidateEncoder:
    """Tokenises each answer once, with an end of sequence where it ended; what does not fit has a reason."""

    def __init__(
        self, tokenizer: Any, encoder: AnswerEncoder, *, eos_token_ids: Sequence[int], max_tokens: int
    ) -> None:
        """Use the policy's tokenizer.

        Args:
            tokenizer: of the policy.
            encoder: made of it; appends an end of sequence.
            eos_token_ids: all that end an answer of the policy.
            max_tokens: of an answer.
        """
        self.prompts = encoder
        self._tokenizer, self._max_tokens = tokenizer, max_tokens
        self._ends = frozenset(eos_token_ids)
        # Texts that spell these out would become them; the end of sequence counts even where it is no special token.
        self._control = frozenset(control_ids(tokenizer)) | self._ends

    def check(self, prompt: Prompt, label: str) -> None:
        """Refuse a chat template that writes a prompt in another way once an answer follows.

        Args:
            prompt: of the run.
            label: the start of the error.

        Raises:
            ModelError: it does.
        """
        try:
            self._encode(prompt, _TRIAL)
        # A template raises what its author chose.
        except Exception as error:
            raise ModelError(
                f"{label}, whose chat template cannot write an answer after a prompt ({first_line(error)}), so that "
                f"candidates cannot be tokenised: correct the template, or remove candidates"
            ) from error

    def encode(self, prompt: Prompt, text: str, *, is_cut: bool) -> EncodedCandidate | Outcome:
        """An answer, or why it cannot be one.

        Args:
            prompt: that it answers.
            text: as it follows a plain prompt, or as it stands in a message.
            is_cut: it did not end, so it gets no end of sequence; where it is too long it loses more of it.
        """
        if is_blank(text):
            return "empty"
        try:
            found, harmless = self._encode(prompt, text), self._encode(prompt, _TRIAL).token_ids
        except Exception:  # as in `check`; or half of a character, which a reply may hold and no text
            return "template"
        ids = found.token_ids
        own = self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        if self._controls(own) or self._controls(ids) != self._controls(harmless):
            return "control_tokens"
        if is_cut:
            ids = ids[:-1] if ids and ids[-1] in self._ends else ids
            if len(ids) > self._max_tokens:  # the writer's limit is in its own tokens, and these are others
                ids = ids[: self._max_tokens]
                text = self.prompts.decode(ids, skip_special_tokens=True)
        if not ids or set(ids) <= self._ends:
            return "empty"
        if len(ids) > self._max_tokens:
            return "too_long"
        return EncodedCandidate(token_ids=ids, text=text, is_split=found.is_split)

    def _encode(self, prompt: Prompt, text: str) -> EncodedAnswer:
        if prompt.messages is None:
            return self.prompts.encode_text_answer(prompt.text or "", prompt.token_ids, text)
        return self.prompts.encode_chat_answer(prompt.messages, prompt.token_ids, text)

    def _controls(self, ids: Sequence[int]) -> list[int]:
        return [token_id for token_id in ids if token_id in self._control]
