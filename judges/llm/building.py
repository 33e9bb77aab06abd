"""Section of an `llm` judge -> the judge."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from judges.calling import Caller, Sleep
from judges.chat import Chat, ChatEngineRequest
from judges.hosting import NO_HOSTING, Hosting
from judges.llm.budget import BudgetAccount, scope_of
from judges.llm.client import EndpointChat
from judges.llm.judge import ChatJudge
from judges.llm.key import read_key
from judges.llm.rubric import RubricJudge
from judges.protocol import Limits
from judges.spec import JudgeSpec
from online_dpo.config.candidates.section import ChatWriter
from online_dpo.config.judges.llm import LlmJudge


def build(spec: JudgeSpec, inner: Mapping[str, Caller], hosting: Hosting) -> ChatJudge | RubricJudge:
    """Build the judge that a spec describes."""
    return build_llm(spec.section, spec.field, hosting=hosting)


def build_llm(
    section: LlmJudge, field: str, *, hosting: Hosting = NO_HOSTING, sleep: Sleep = asyncio.sleep
) -> ChatJudge | RubricJudge:
    """Build the judge where it will live.

    Args:
        section: the judge's part of the config.
        field: the name of that part.
        hosting: gives the engine, and what was spent before.
        sleep: waits between two tries of a request, in seconds.

    Raises:
        JudgeError: its key is not where the section says, or no engine can be had here.
    """
    chat = build_chat(section, field, hosting=hosting, sleep=sleep)
    if section.endpoint is None:
        # One call at a time: what shares a batch of the engine must not depend on what else is being judged.
        # A call goes through or fails at once, and how long it takes depends on the batch: no limit of time fits.
        return judge_of(section, chat, Limits(calls_in_flight=1, own_retries=True))
    # A prompt at a time, so that the budget ends between two prompts and not within many.
    return judge_of(section, chat, Limits(questions_per_call=1, own_retries=True))


def judge_of(section: LlmJudge, chat: Chat, limits: Limits) -> ChatJudge | RubricJudge:
    """The judge that asks what the section says."""
    if section.rubric is not None:
        return RubricJudge(section, section.rubric, chat, limits=limits)
    return ChatJudge(section, chat, limits=limits)


def build_chat(
    section: LlmJudge | ChatWriter, field: str, *, hosting: Hosting = NO_HOSTING, sleep: Sleep = asyncio.sleep
) -> Chat:
    """The chat model that a section with an endpoint or an engine asks; arguments and errors as of `build_llm`."""
    if section.endpoint is None:
        return _engine(section, field, hosting)
    place = f"{field}.endpoint"
    account = BudgetAccount(
        section.budget,
        section.endpoint.prices,
        field=f"{field}.budget",
        counted=hosting.counted,
        scope=scope_of(field),
    )
    return EndpointChat(
        section.endpoint,
        field=place,
        key=read_key(section.endpoint, place),
        account=account,
        concurrency=section.concurrency,
        timeout_s=section.timeout_s,
        retries=section.retries,
        sleep=sleep,
    )


def _engine(section: LlmJudge | ChatWriter, field: str, hosting: Hosting) -> Chat:
    assert section.engine is not None
    engine = section.engine
    request = ChatEngineRequest(
        path=engine.path,
        dtype=engine.dtype,
        max_model_len=engine.max_model_len,
        gpu_memory_utilization=engine.gpu_memory_utilization,
        kv_cache_gib=engine.kv_cache_gib,
        trust_remote_code=engine.trust_remote_code,
        label=f"{field}.engine",
    )
    return hosting.engine(request)
