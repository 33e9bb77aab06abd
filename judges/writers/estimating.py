"""What writers of candidates will take, before they are asked; as `judges.estimating` for judges."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from judges.chat import ChatRequest
from judges.estimating import MAX_SAMPLED_PROMPTS, SHORTEST, CountTokens, Use
from judges.llm.budget import Spend, spent_of
from judges.llm.client import TEMPLATE_TOKENS, most_reply_tokens
from judges.writers.writer import WriterSpec, teacher_messages
from online_dpo.config.candidates.section import TeacherWriter
from online_dpo.data.revising import critique_messages, principle_for, revision_messages
from online_dpo.types import Message, Prompt


def estimate_writer(
    spec: WriterSpec,
    prompts: Sequence[Prompt],
    *,
    number: int,
    num_samples: int,
    answer_tokens: int,
    count_tokens: CountTokens,
) -> Use:
    """A teacher's answers, or a critique and a revision of each of the policy's answers that is revised.

    Args:
        spec: of the writer.
        prompts: all that are asked about, or some that stand for them.
        number: of them that are asked about.
        num_samples: of the policy, for each.
        answer_tokens: the most of a sample.
        count_tokens: of texts.
    """
    section, some = spec.section, prompts[:: math.ceil(len(prompts) / MAX_SAMPLED_PROMPTS) or 1]
    if isinstance(section, TeacherWriter):
        asked = [teacher_messages(prompt, section.system) for prompt in some]
        return _asked(spec, asked, number * section.num_samples, 0, spec.max_tokens, count_tokens)
    answer, calls = SHORTEST[0], number * min(section.num_samples, num_samples)
    limit = spec.max_tokens if section.critique_tokens == "auto" else section.critique_tokens
    critiques = [
        critique_messages(prompt, answer, principle_for(section.principles, spec.seed, prompt.prompt_id, 0))
        for prompt in some
    ]
    revisions = [revision_messages(critique, answer, section.revision) for critique in critiques]
    critique = _asked(spec, critiques, calls, answer_tokens, limit, count_tokens)
    revision = _asked(spec, revisions, calls, answer_tokens + limit, spec.max_tokens, count_tokens)
    # Nothing is revised for which no critique came.
    return critique + replace(revision, least=Spend())


def writer_spent(counted: Mapping[str, float]) -> Spend:
    """What a writer has spent of its budget, of what its host counted: as judges count, without the word judge."""
    return spent_of({name.replace("num_", "num_judge_", 1): value for name, value in counted.items()}, "judge")


def _asked(
    spec: WriterSpec,
    conversations: Sequence[Sequence[Message]],
    calls: int,
    written: int,
    reply: int,
    count_tokens: CountTokens,
) -> Use:
    """So many requests like these, in which so many tokens at most were written by others."""
    if not calls:
        return Use(least=Spend(), most=Spend())
    texts = ["\n".join(message["content"] for message in messages) for messages in conversations]
    shortest = math.fsum(count_tokens(texts)) / len(texts)
    extra_body = {} if spec.section.endpoint is None else spec.section.endpoint.extra_body
    request = ChatRequest(messages=tuple(conversations[0]), max_tokens=reply, temperature=spec.section.temperature)
    return Use(
        least=Spend(calls, math.floor(calls * shortest), calls),
        most=Spend(
            calls,
            math.ceil(calls * (shortest + TEMPLATE_TOKENS + written)),
            calls * most_reply_tokens(request, extra_body),
        ),
    )
