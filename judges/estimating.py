"""What asking chat models will take, before it is asked: requests and tokens, from the least to the most.

Requests are counted from the config, and their tokens by making the requests with answers of no length. A section that
bills in another way needs a branch in `_of_judge`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from judges.llm.budget import Spend
from judges.llm.building import judge_of
from judges.llm.client import TEMPLATE_TOKENS, most_reply_tokens
from judges.protocol import Limits, Question
from online_dpo.config.judges.llm import LlmJudge, Prices
from online_dpo.config.judges.section import CachedJudge, JudgeSection, OuterJudge, ProcessJudge
from online_dpo.types import Prompt

SHORTEST = ("0", "1")
"""Two answers that differ, each of one token: texts that are the same are not compared."""

MAX_SAMPLED_PROMPTS = 256
"""Of more prompts so many stand for all; making and counting their requests then takes less than a second."""

NOTHING = Spend()

CountTokens = Callable[[Sequence[str]], list[int]]
"""Texts -> tokens of each, as the policy's tokenizer counts them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Questions:
    """Questions of one form that a judge will be asked."""

    number: int  # one for each prompt
    prompts: Sequence[Prompt]  # as many, or some that stand for them
    num_completions: int  # of each
    answer_tokens: int  # the most of a completion
    least: float = 1.0  # share of them that is asked in any case
    parts_unknown: bool = False  # a completion is asked about in parts, of which nobody knows the number

    def __post_init__(self) -> None:
        step = math.ceil(len(self.prompts) / MAX_SAMPLED_PROMPTS) or 1
        object.__setattr__(self, "prompts", tuple(self.prompts[::step]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """What a judge's requests take: at least, and at most where that is known."""

    least: Spend
    most: Spend | None

    def __add__(self, other: Use) -> Use:
        most = None if self.most is None or other.most is None else self.most + other.most
        return Use(least=self.least + other.least, most=most)

    def amounts(self) -> dict[str, tuple[int, int | None]]:
        """Requests and tokens, each from the least to the most, which is None where it is not known."""
        least, most = self.least, self.most
        return {
            "requests": (least.calls, None if most is None else most.calls),
            "prompt_tokens": (least.prompt, None if most is None else most.prompt),
            "reply_tokens": (least.completion, None if most is None else most.completion),
        }

    def cost(self, prices: Prices | None) -> tuple[float, float | None] | None:
        """Money, from the least to the most; None without prices."""
        if prices is None:
            return None
        return prices.cost(*self.least.tokens), None if self.most is None else prices.cost(*self.most.tokens)


def estimate(
    section: JudgeSection, field: str, asked: Iterable[Questions], count_tokens: CountTokens
) -> dict[str, Use]:
    """What each judge that asks a chat model takes, this one or those inside it, by its field.

    A request is counted once: how often it has to be repeated is not known. Two answers of a prompt are taken to
    differ; where they do not, less is asked.
    """
    total: dict[str, Use] = {}
    for questions in asked:
        for place, judge, reached in _reached(section, field, questions):
            use = _of_judge(judge, reached, count_tokens)
            if use is not None:
                total[place] = total[place] + use if place in total else use
    return total


def _reached(section: JudgeSection, field: str, questions: Questions) -> Iterator[tuple[str, JudgeSection, Questions]]:
    """What of the questions to a judge comes to each one inside it that answers by itself."""
    if not isinstance(section, OuterJudge):
        yield field, section, questions
        return
    if isinstance(section, CachedJudge):
        questions = replace(questions, least=0.0)
    elif isinstance(section, ProcessJudge):  # a question for each completion, about its steps
        number = questions.number * questions.num_completions
        questions = replace(questions, number=number, num_completions=1, least=0.0, parts_unknown=True)
    for place, inner in section.inner.items():
        yield from _reached(inner, f"{field}.{place}", questions)


def _of_judge(section: JudgeSection, questions: Questions, count_tokens: CountTokens) -> Use | None:
    """None for a judge that asks no chat model."""
    if isinstance(section, LlmJudge):
        return _of_llm(section, questions, count_tokens)
    return None


def _of_llm(section: LlmJudge, questions: Questions, count_tokens: CountTokens) -> Use:
    k = questions.num_completions
    is_pairwise = section.form == "pairwise"
    subjects = math.comb(k, 2) * (2 if section.both_orders else 1) if is_pairwise else k
    calls = questions.number * subjects * len(section.principles) * section.votes
    if not calls:
        return Use(least=NOTHING, most=NOTHING)
    # Every order and vote has the same texts, so one of each is made and counted.
    once = section.model_copy(update={"votes": 1, "both_orders": False})
    answers = SHORTEST[: 2 if is_pairwise else 1]
    judge = judge_of(once, None, Limits())  # type: ignore[arg-type]
    requests = [
        request
        for prompt in questions.prompts
        for request in judge.requests(
            Question(prompt_id="", prompt=prompt.content, completions=answers, metadata=prompt.metadata)
        )
    ]
    if not requests:  # all are longer than max_chars, or none has a rubric
        return Use(least=NOTHING, most=NOTHING)
    texts = ["\n".join(message["content"] for message in request.messages) for request in requests]
    shortest = math.fsum(count_tokens(texts)) / len(texts)
    longest = shortest + TEMPLATE_TOKENS + len(answers) * questions.answer_tokens
    extra_body = {} if section.endpoint is None else section.endpoint.extra_body
    reply = max(most_reply_tokens(request, extra_body) for request in requests)
    # Prompts without a rubric are not asked about.
    share = len(requests) / len(questions.prompts) if section.rubric is not None else 1.0
    num_least = math.floor(calls * questions.least * share)
    return Use(
        least=Spend(num_least, math.floor(num_least * shortest), num_least),
        most=None if questions.parts_unknown else Spend(calls, math.ceil(calls * longest), calls * reply),
    )
