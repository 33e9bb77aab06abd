"""Questions -> requests -> votes -> verdicts, for whatever `Chat` answers the requests."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

from judges.chat import CallFailed, Chat, ChatReply, ChatRequest
from judges.llm.prompts import ReplyFormat, build_messages, make_format
from judges.llm.votes import read_json, read_token, read_why
from judges.protocol import Abstain, Limits, Question, count
from online_dpo.config.judges.llm import LlmJudge
from online_dpo.types import Abstention, PromptContent, Verdict, derive_seed

Subject = tuple[int, ...]
"""What one verdict is about: (i,), or (i, j) where i is presented first."""
Vote = float | Abstain

CODED_LETTER_TOKENS = 16
"""The longest reply of a letter and a code, in tokens: one for each of its eight characters, and some more."""

TOP_LOGPROBS = 20
"""Alternatives of the first token: as many as OpenAI and vLLM report by default."""


@dataclass(frozen=True, slots=True)
class _VoteRequest:
    """A request for one vote, and what the vote is about."""

    question: int  # index in the batch
    subject: Subject
    principle: int
    # Both None where the texts are too long to be asked about.
    wanted: ReplyFormat | None = None
    request: ChatRequest | None = None


class ChatJudge:
    """A chat model asked about each completion, or about every two in both orders; see docs/judges.md."""

    def __init__(self, section: LlmJudge, chat: Chat, *, limits: Limits) -> None:
        self.limits = limits
        self._section = section
        self._chat = chat

    async def judge(self, questions: Sequence[Question]) -> list[list[Verdict]]:
        asked = [one for index, question in enumerate(questions) for one in self._vote_requests(index, question)]
        requests = [one.request for one in asked if one.request is not None]
        replies = iter(await self._chat.ask(requests) if requests else [])
        votes: dict[tuple[int, Subject, int], list[Vote]] = {}
        written: dict[tuple[int, Subject], list[str]] = {}  # for opinions, by principle and vote
        for one in asked:
            reply = None if one.wanted is None else next(replies)
            vote = self._too_long() if one.wanted is None or reply is None else self._read(reply, one.wanted)
            count("num_judge_votes")
            count("num_judge_votes_unreadable", isinstance(vote, Abstain))
            if self._section.explain and isinstance(reply, ChatReply) and not isinstance(vote, Abstain):
                written.setdefault((one.question, one.subject), []).append(read_why(reply))
            votes.setdefault((one.question, one.subject, one.principle), []).append(vote)
        said: dict[tuple[int, Subject], Vote] = {}
        for index, subject in dict.fromkeys((one.question, one.subject) for one in asked):
            principles = range(len(self._section.principles))
            said[index, subject] = self._aggregate([_mean_vote(votes[index, subject, p]) for p in principles])
        return [
            [self._explained(index, question, verdict, written) for verdict in self._verdicts(index, question, said)]
            for index, question in enumerate(questions)
        ]

    def requests(self, question: Question) -> list[ChatRequest]:
        """What would be asked about a question; nothing is asked."""
        return [one.request for one in self._vote_requests(0, question) if one.request is not None]

    def _explained(
        self, index: int, question: Question, verdict: Verdict, written: dict[tuple[int, Subject], list[str]]
    ) -> Verdict:
        """With what the model wrote for it, a line for each request. In it A is `first`, and B is `second`."""
        subject: Subject = (question.completions.index(question.completions[verdict.first]),)
        if verdict.second is not None:
            subject = (verdict.first, verdict.second)
        lines = [line for line in written.get((index, subject), []) if line]
        return replace(verdict, rationale="\n".join(lines)) if lines and verdict.reason is None else verdict

    def _read(self, reply: ChatReply | CallFailed, wanted: ReplyFormat) -> Vote:
        if wanted.as_json:
            return read_json(reply, wanted)
        return read_token(reply, wanted, min_mass=self._section.min_mass)

    def _too_long(self) -> Abstain:
        count("num_judge_too_long")
        return Abstain(f"too long: the texts have more characters than max_chars {self._section.max_chars}")

    def _vote_requests(self, index: int, question: Question) -> Iterator[_VoteRequest]:
        section = self._section
        for subject in self._subjects(question):
            texts = tuple(question.completions[i] for i in subject)
            for p, principle in enumerate(section.principles):
                for vote in range(section.votes):
                    if num_chars(question.prompt, texts) > section.max_chars:  # before anything is made of them
                        yield _VoteRequest(index, subject, p)
                        continue
                    asked: dict[str, Any] = {"principle": principle, "prompt": question.prompt, "answers": texts}
                    wanted = make_format(
                        form=section.form,
                        as_json=section.verdict == "json",
                        coded=section.endpoint is not None,
                        explains=section.explain,
                        seed=section.seed,
                        vote=vote,
                        **asked,
                    )
                    messages = build_messages(wanted, seed=section.seed, **asked)
                    request = make_request(
                        section, messages, wanted, vote=vote, max_tokens=section.reply_tokens, again=question.again
                    )
                    yield _VoteRequest(index, subject, p, wanted, request)

    def _subjects(self, question: Question) -> Iterator[Subject]:
        """What is asked about. The same text is asked about once, and never compared with itself."""
        texts = question.completions
        if self._section.form == "pointwise":
            yield from ((texts.index(text),) for text in dict.fromkeys(texts))
            return
        for i, j in combinations(range(len(texts)), 2):
            if texts[i] == texts[j]:
                continue
            if self._section.both_orders:
                yield from ((i, j), (j, i))
            else:  # half of the time the other way round, so that a bias for the first place favours nobody
                flip = derive_seed(self._section.seed, "order", json.dumps([question.prompt, texts[i], texts[j]])) % 2
                yield (j, i) if flip else (i, j)

    def _aggregate(self, votes: Sequence[Vote]) -> Vote:
        """Of all principles; one that is undecided leaves the whole undecided."""
        section = self._section
        found = []
        for principle, vote in enumerate(votes):
            if isinstance(vote, Abstain):
                return vote if len(votes) == 1 else replace(vote, reason=f"{vote.reason} (principle {principle + 1})")
            found.append(vote)
        weights = section.weights or [1.0] * len(found)
        if section.aggregate == "min":
            return min(found)
        if section.aggregate == "majority":
            found = [(vote > 0.5) + 0.5 * (vote == 0.5) for vote in found]
        mean = math.fsum(w * vote for w, vote in zip(weights, found, strict=True)) / math.fsum(weights)
        return min(max(mean, min(found)), max(found))  # rounding may leave the range

    def _verdicts(self, index: int, question: Question, said: dict[tuple[int, Subject], Vote]) -> list[Verdict]:
        texts = question.completions
        if self._section.form == "pointwise":
            return [question.score(i, said[index, (texts.index(text),)]) for i, text in enumerate(texts)]
        verdicts = [question.abstain(0, "nothing to compare with")] if len(texts) == 1 else []
        for i, j in combinations(range(len(texts)), 2):
            if texts[i] == texts[j]:
                verdicts.append(question.compare(i, j, "tie"))
                continue
            votes = {subject: said[index, subject] for subject in ((i, j), (j, i)) if (index, subject) in said}
            if len(votes) == 2:
                votes = self._check_orders(votes)
            verdicts += [question.compare(*subject, vote) for subject, vote in votes.items()]
        return verdicts

    def _check_orders(self, votes: dict[tuple[int, int], Vote]) -> dict[tuple[int, int], Vote]:
        """The votes of the two orders; abstentions where both prefer the same place, and so not the same answer."""
        first, second = votes.values()
        if isinstance(first, Abstain) or isinstance(second, Abstain):
            return votes
        count("num_judge_orders_compared")
        if (first - 0.5) * (second - 0.5) <= 0.0:
            return votes
        place = "first" if first > 0.5 else "second"
        count("num_judge_order_conflicts")
        count(f"num_judge_order_conflicts_{place}_place")
        if self._section.on_conflict == "average":
            return votes
        kind: Abstention = "first_place" if first > 0.5 else "second_place"
        return dict.fromkeys(votes, Abstain(f"orders disagree: the {place} place wins both", kind=kind))


def make_request(
    section: LlmJudge,
    messages: Sequence[dict[str, str]],
    wanted: ReplyFormat,
    *,
    vote: int,
    max_tokens: int,
    again: bool,
) -> ChatRequest:
    """One request for one vote.

    Args:
        section: of the judge.
        messages: that ask.
        wanted: the form of the reply.
        vote: its number.
        max_tokens: of a JSON reply.
        again: another, independent answer is wanted.
    """
    # From the content alone: the same question is answered alike wherever it comes up.
    seed = derive_seed(section.seed, "vote again" if again else "vote", vote, json.dumps(messages)) >> 32
    return ChatRequest(
        messages=tuple(messages),
        schema=wanted.schema,
        max_tokens=max_tokens if wanted.as_json else 1 if wanted.code is None else CODED_LETTER_TOKENS,
        temperature=section.temperature,
        seed=seed if section.temperature > 0.0 else None,
        num_logprobs=None if wanted.as_json else TOP_LOGPROBS,
        code=wanted.code,
    )


def num_chars(prompt: PromptContent, answers: Sequence[str]) -> int:
    """Of a prompt and what is asked about it."""
    turns = [prompt] if isinstance(prompt, str) else [turn["content"] for turn in prompt]
    return sum(map(len, [*turns, *answers]))


def _mean_vote(votes: Sequence[Vote]) -> Vote:
    """The mean of the votes on one question, where more than half are readable; else the commonest abstention."""
    readable = [vote for vote in votes if not isinstance(vote, Abstain)]
    if 2 * len(readable) > len(votes):
        return math.fsum(readable) / len(readable)
    return Counter(vote for vote in votes if isinstance(vote, Abstain)).most_common(1)[0][0]
