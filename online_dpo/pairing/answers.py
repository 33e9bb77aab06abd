"""What of a completion is the answer: its text without thoughts, as `judge.view` tells them.

Judges, people, filters of pairs, figures and reports see the answer; training, log-probs and KL see every token.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from online_dpo.config.judges.view import ViewSection
from online_dpo.types import Completion, Verdict

UNCLOSED = "unclosed_thought"
"""The further outcome, where `judge.view` is set, of a completion whose thought has no end, and of a prompt that has
fewer than two others."""

NO_END = "the thought has no end"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One completion, read."""

    text: str  # without thoughts, and where there were any, without blank space around it
    kept: tuple[tuple[int, int], ...]  # [start, end) in the completion's text of what is no thought
    is_closed: bool  # every thought has an end


def read_answer(text: str, view: ViewSection | None) -> Answer:
    """Tell the answer from the thoughts.

    A thought is what stands before a closing tag: back to its opening tag, or, where it has none because the chat
    template wrote it, back to the thought before or the beginning of the completion. Inside a thought other tags are
    plain text.

    Args:
        text: of a completion.
        view: which tags thoughts have; None = there are none.
    """
    tags = () if view is None else view.pairs_of_tags
    if view is None or not tags:
        return Answer(text=text, kept=((0, len(text)),), is_closed=True)
    closing = dict(tags)
    every = sorted({tag for pair in tags for tag in pair}, key=len, reverse=True)
    kept: list[tuple[int, int]] = []
    start, awaited = 0, set(closing.values()) if view.prefilled else set()
    for found in re.finditer("|".join(map(re.escape, every)), text):
        tag = found.group()
        if awaited and tag not in awaited:
            continue
        if awaited or tag not in closing:  # a closing tag, the one that is awaited or one without an opening
            start, awaited = found.end(), set()
        else:
            kept.append((start, found.start()))
            awaited = {closing[tag]}
    if not awaited:
        kept.append((start, len(text)))
    if kept == [(0, len(text))]:
        return Answer(text=text, kept=tuple(kept), is_closed=True)
    answer = "".join(text[begin:end] for begin, end in kept).strip()
    return Answer(text=answer, kept=tuple(kept), is_closed=not awaited)


def with_answers(completions: Sequence[Completion], view: ViewSection | None) -> list[Completion]:
    """The completions with the answer alone as their text, for whatever reads texts. Nothing may be trained on them."""
    if view is None:
        return list(completions)
    return [replace(completion, text=read_answer(completion.text, view).text) for completion in completions]


def for_judges(
    completions: Sequence[Completion], view: ViewSection | None
) -> tuple[list[Completion], dict[str, list[Verdict]]]:
    """What judges are asked about, and what is settled without them.

    Args:
        completions: of any prompts.
        view: of the judge; None = they are seen whole.

    Returns:
        The completions whose thoughts are closed, with the answer alone as their text; and prompt id -> verdicts on
        the others, scores or abstentions of the kind "unclosed".
    """
    if view is None:
        return list(completions), {}
    seen: list[Completion] = []
    settled: dict[str, list[Verdict]] = {}
    for completion in completions:
        answer = read_answer(completion.text, view)
        if answer.is_closed:
            seen.append(replace(completion, text=answer.text))
            continue
        verdict = Verdict(
            prompt_id=completion.prompt_id, first=completion.sample_index, reason=NO_END, abstention="unclosed"
        )
        if isinstance(view.unclosed, float):
            verdict = Verdict(
                prompt_id=completion.prompt_id,
                first=completion.sample_index,
                score=view.unclosed,
                rationale=NO_END,
            )
        settled.setdefault(completion.prompt_id, []).append(verdict)
    return seen, settled


def num_answer_tokens(completion: Completion) -> int:
    """Tokens of the answer: of the whole completion where no view was in use when it was sampled."""
    return len(completion.token_ids) if completion.answer_tokens is None else completion.answer_tokens
