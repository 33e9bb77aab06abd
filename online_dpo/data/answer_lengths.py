"""Token ids of a completion -> how many of them are the answer's, and what a tokenizer says about a view's tags."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from online_dpo.config.judges.view import ViewSection
from online_dpo.errors import ConfigError
from online_dpo.pairing.answers import read_answer
from online_dpo.types import Completion, Prompt

BROKEN = "\ufffd"
"""Stands in a decoded text for bytes that are no character."""

TAIL_TOKENS = 64
"""Of a prompt: as many as an opening tag, and what a template may write after it, have."""


class AnswerLengths:
    """Counts the tokens that lie wholly outside of thoughts, an end token included."""

    def __init__(self, view: ViewSection | None, tokenizer: Any) -> None:
        """Nothing is counted where there is no view.

        Args:
            view: which tags thoughts have.
            tokenizer: of the policy.
        """
        self._view = view
        skipped = not has_special_tags(view, tokenizer)
        self._decode: Callable[[Sequence[int]], str] = lambda ids: str(
            tokenizer.decode(list(ids), skip_special_tokens=skipped, clean_up_tokenization_spaces=False)
        )

    def __call__(self, completion: Completion) -> Completion:
        """The same completion with `answer_tokens`."""
        if self._view is None:
            return completion
        answer, text = read_answer(completion.text, self._view), completion.text
        if answer.kept == ((0, len(text)),):
            return replace(completion, answer_tokens=len(completion.token_ids))
        *spans, last = answer.kept if answer.is_closed else (*answer.kept, None)
        number = sum(self._between(completion.token_ids, text, *span) for span in spans if span is not None)
        if last is not None:
            number += self._after(completion.token_ids, self._tail(completion.token_ids, text, last[0]))
        return replace(completion, answer_tokens=number)

    def _between(self, ids: Sequence[int], text: str, start: int, end: int) -> int:
        """Tokens whose text lies in these characters."""
        until = _largest(len(ids), lambda n: len(self._decode(ids[:n])) <= end)
        return max(0, until - self._first_from(ids, text, start))

    def _first_from(self, ids: Sequence[int], text: str, start: int) -> int:
        """The first token that lies wholly behind these characters."""
        if not start:
            return 0
        number = _largest(len(ids), lambda n: len(self._decode(ids[:n])) < start) + 1
        # Some bytes of the last character count as all of it.
        while number < len(ids) and self._decode(ids[:number]).endswith(BROKEN) and text[start - 1] != BROKEN:
            number += 1
        return number

    def _tail(self, ids: Sequence[int], text: str, start: int) -> str:
        """What the tokens say after the last thought: also the stop string, which the text lacks."""
        assert self._view is not None
        tag = next(closed for _, closed in self._view.pairs_of_tags if text.endswith(closed, 0, start))
        size = TAIL_TOKENS
        while tag not in (tail := self._decode(ids[-size:])) and size < len(ids):
            size *= 2
        return tail[tail.rfind(tag) + len(tag) :]

    def _after(self, ids: Sequence[int], tail: str) -> int:
        """Tokens at the end whose text is this."""

        def text(number: int) -> str:
            return self._decode(ids[len(ids) - number :])

        # A text that begins within a character begins with marks of broken bytes, as many as there are bytes.
        number = _largest(len(ids), lambda n: len(text(n).lstrip(BROKEN)) <= len(tail.lstrip(BROKEN)))
        while not tail.startswith(BROKEN) and text(number).startswith(BROKEN):
            number -= 1  # the bytes of a tag's last character
        return number


def _largest(most: int, fits: Callable[[int], bool]) -> int:
    """The largest number up to `most` that fits, where every smaller one does: by doubling, since it is often small."""
    low, high = 0, 1
    while high < most and fits(high):
        low, high = high, 2 * high
    high = min(high, most)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def has_special_tags(view: ViewSection | None, tokenizer: Any) -> bool:
    """Whether a tag holds a special token, which engines leave out of texts unless they are told to keep them."""
    tags = [] if view is None else [tag for pair in view.pairs_of_tags for tag in pair]
    special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special] if tags else []
    return any(token in tag for tag in tags for token in special)


def check_prefilled(view: ViewSection, prompts: Sequence[Prompt], tokenizer: Any, field: str) -> None:
    """See whether prompts end with an opening tag, as `prefilled` says.

    Args:
        view: of a judge.
        prompts: that are sampled.
        tokenizer: of the policy.
        field: of the view in the config.

    Raises:
        ConfigError: they do and `prefilled` is false, or they do not and it is true.
    """
    for prompt in prompts if view.pairs_of_tags else ():
        tail = tokenizer.decode(list(prompt.token_ids[-TAIL_TOKENS:]), skip_special_tokens=False)
        ends_with = next((opened for opened, _ in view.pairs_of_tags if tail.rstrip().endswith(opened)), None)
        if not view.prefilled and ends_with is not None:
            raise ConfigError(
                f"{field}.prefilled is false and prompt {prompt.prompt_id} ends with {ends_with}, so that its "
                f"completions begin inside a thought: set {field}.prefilled to true"
            )
        is_open = any(tail.rfind(opened) > tail.rfind(closed) for opened, closed in view.pairs_of_tags)
        if view.prefilled and not is_open:
            raise ConfigError(
                f"{field}.prefilled is true and prompt {prompt.prompt_id} ends with no opening tag, so that an answer "
                f"without a thought would count as unclosed: remove {field}.prefilled, or correct its tags"
            )
