"""A chat model that holds every completion against a checklist, in one request; the score is a weighted sum."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from judges.chat import CallFailed, Chat, ChatReply, ChatRequest
from judges.llm.checklists import Checklist, checklist_of
from judges.llm.judge import make_request, num_chars
from judges.llm.rubric_prompts import RubricFormat, build_rubric_messages, make_rubric_format
from judges.llm.votes import LONGEST, read_object, read_why
from judges.protocol import Abstain, Limits, Question, count
from judges.values import MAX_REASON
from online_dpo.config.judges.llm import LlmJudge, RubricSection
from online_dpo.types import Verdict

CRITERION_TOKENS, CRITERION_CHARACTERS = 16, 40
"""Of a reply, for each criterion: its number, a word, and what stands around them."""

Credits = list[float]
"""Of each criterion, from 0 to 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """A request for one vote on one text."""

    wanted: RubricFormat
    request: ChatRequest


@dataclass(frozen=True, slots=True)
class _Found:
    """What was said about one text."""

    credits: Credits
    whys: list[str]


class RubricJudge:
    """Scores completions by checklists."""

    def __init__(self, section: LlmJudge, rubric: RubricSection, chat: Chat, *, limits: Limits) -> None:
        self.limits = limits
        self._section, self._rubric, self._chat = section, rubric, chat

    async def judge(self, questions: Sequence[Question]) -> list[list[Verdict]]:
        checklists = [checklist_of(question.metadata, self._rubric) for question in questions]
        count("num_judge_without_rubric", sum(isinstance(found, Abstain) for found in checklists))
        asked = {  # (question, text) -> its votes; the same text is asked about once
            (index, text): list(self._asked(question, text, checklist))
            for index, (question, checklist) in enumerate(zip(questions, checklists, strict=True))
            if isinstance(checklist, Checklist)
            for text in dict.fromkeys(question.completions)
        }
        requests = [one.request for votes in asked.values() for one in votes]
        replies = iter(await self._chat.ask(requests) if requests else [])
        said = {key: self._find([(next(replies), one.wanted) for one in votes]) for key, votes in asked.items()}
        return [
            [
                self._verdict(question, i, checklist, said.get((index, text)))
                for i, text in enumerate(question.completions)
            ]
            for index, (question, checklist) in enumerate(zip(questions, checklists, strict=True))
        ]

    def requests(self, question: Question) -> list[ChatRequest]:
        """What would be asked about a question; nothing is asked."""
        checklist = checklist_of(question.metadata, self._rubric)
        if isinstance(checklist, Abstain):
            return []
        texts = dict.fromkeys(question.completions)
        return [one.request for text in texts for one in self._asked(question, text, checklist)]

    def _asked(self, question: Question, text: str, checklist: Checklist) -> Iterator[_Asked]:
        section = self._section
        if num_chars(question.prompt, [text, *checklist.criteria]) > section.max_chars:
            return
        auto = section.reply_tokens + (
            CRITERION_TOKENS * len(checklist.criteria) if section.max_tokens == "auto" else 0
        )
        asked: dict[str, Any] = {
            "criteria": checklist.criteria,
            "prompt": question.prompt,
            "answer": text,
            "seed": section.seed,
        }
        for vote in range(section.votes):
            wanted = make_rubric_format(
                credit=self._rubric.credit, coded=section.endpoint is not None, vote=vote, explains=section.explain,
                **asked,
            )  # fmt: skip
            messages = build_rubric_messages(wanted, **asked)
            request = make_request(section, messages, wanted, vote=vote, max_tokens=auto, again=question.again)
            yield _Asked(wanted=wanted, request=request)

    def _find(self, replies: Sequence[tuple[ChatReply | CallFailed, RubricFormat]]) -> _Found | Abstain:
        """The mean of the votes on one text where more than half are readable; else the commonest abstention."""
        if not replies:
            count("num_judge_too_long")
            return Abstain(f"too long: the texts have more characters than max_chars {self._section.max_chars}")
        votes = [(_read(reply, wanted), reply) for reply, wanted in replies]
        count("num_judge_votes", len(votes))
        silent = [vote for vote, _ in votes if isinstance(vote, Abstain)]
        count("num_judge_votes_unreadable", len(silent))
        if 2 * len(silent) >= len(votes):
            return Counter(silent).most_common(1)[0][0]
        readable = [(vote, reply) for vote, reply in votes if not isinstance(vote, Abstain)]
        credits = [math.fsum(column) / len(readable) for column in zip(*(vote for vote, _ in readable), strict=True)]
        whys = [read_why(reply) for _, reply in readable if self._section.explain and isinstance(reply, ChatReply)]
        return _Found(credits, [why for why in whys if why])

    def _verdict(
        self, question: Question, position: int, checklist: Checklist | Abstain, found: _Found | Abstain | None
    ) -> Verdict:
        if isinstance(checklist, Abstain):
            return question.score(position, checklist)
        assert found is not None
        if isinstance(found, Abstain):
            return question.score(position, found)
        verdict = question.score(position, checklist.score(found.credits))
        return replace(verdict, rationale="\n".join([*_lines(checklist, found.credits), *found.whys]))


def _read(reply: ChatReply | CallFailed, wanted: RubricFormat) -> Credits | Abstain:
    found = read_object(reply, wanted, longest=LONGEST + CRITERION_CHARACTERS * wanted.num_criteria)
    return found if isinstance(found, Abstain) else wanted.read(found[wanted.key])


def _lines(checklist: Checklist, credits: Credits) -> list[str]:
    """Each criterion's verdict, for people: its credit, its weight, and as much of its text as there is room for."""
    width = max(8, MAX_REASON // len(credits) - 16)
    lines = []
    for text, weight, credit in zip(checklist.criteria, checklist.weights, credits, strict=True):
        word = {1.0: "yes", 0.5: "partly", 0.0: "no"}.get(credit, f"{credit:.2f}")
        line = " ".join(text.split())
        line = line if len(line) <= width else f"{line[: width - 3]}..."
        lines.append(f"{word} ({weight:+g}): {line}")
    return lines
