"""Trying a judge on two canned completions before a run begins: a judge that cannot work should say so early."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Mapping
from typing import Any

from judges.calling import AsksOthers, Caller
from judges.isolation.failures import ProcessEnded, RaisedInChild, kind_of
from judges.protocol import Judge, Question, StopJudging, check_verdicts, limits_of
from online_dpo.config.pairing import PairingSection, explain_no_scores
from online_dpo.errors import JudgeError
from online_dpo.pairing.opinions import scores_nothing
from online_dpo.types import PromptContent, Verdict

TEXT = "In a few words, the film was"
ANSWERS = (" a quiet joy from the first scene to the last.", " far too long, and I left before the end.")


async def try_judges(
    caller: Caller, *, chat: bool, metadata: Mapping[str, Any] | None = None, rules: PairingSection | None = None
) -> list[Verdict]:
    """Try a judge, after those inside it, so that what is said names the one that is wrong.

    Args:
        caller: any judge.
        chat: whether the run's prompts are chat messages.
        metadata: that of the run's first prompt.
        rules: of the training judge; where they read scores, it must give some.

    Returns:
        What the judge said about the two.

    Raises:
        JudgeError: a line for each that does not keep its contract.
    """
    problems = []
    for inner in caller.inner:
        try:
            await try_judges(inner, chat=chat, metadata=metadata)
        except JudgeError as error:
            problems.append(str(error))
    if problems:
        raise JudgeError("\n".join(problems))
    said = await try_judge(
        caller.judge, field=caller.label, chat=chat, metadata=metadata, timeout_s=caller.trial_timeout_s
    )
    if rules is not None and rules.score_reader is not None and scores_nothing(said):
        raise JudgeError(explain_no_scores(rules, caller.label))
    return said


async def try_judge(
    judge: Judge | AsksOthers,
    *,
    field: str,
    chat: bool,
    metadata: Mapping[str, Any] | None = None,
    timeout_s: float = 600.0,
) -> list[Verdict]:
    """Ask one question with two completions, and hold the answer to the contract. Abstaining is allowed.

    Args:
        judge: any judge.
        field: what error messages call it, such as `JudgeSpec.label`.
        chat: whether the run's prompts are chat messages; the canned prompt is then one.
        metadata: that of the run's first prompt, for judges that read it.
        timeout_s: seconds until it counts as never returning, unless it limits its calls itself.

    Raises:
        JudgeError: it raises, takes too long, or returns something that is no verdict.
    """
    content: PromptContent = [{"role": "user", "content": TEXT}] if chat else TEXT
    question = Question(prompt_id="trial", prompt=content, completions=ANSWERS, metadata=dict(metadata or {}))
    limits = limits_of(judge)
    limit = asyncio.timeout(timeout_s if limits.held_from_outside else None)
    try:
        async with limit:
            verdicts = check_verdicts([question], await judge.judge([question]))[0]
        if all(verdict.failed for verdict in verdicts):
            raise JudgeError(str(verdicts[0].explanation))
        return verdicts
    except StopJudging:
        raise
    except JudgeError as error:
        raise JudgeError(f"{field} was tried on two canned completions and {error}") from error
    except (Exception, SystemExit) as error:
        if limit.expired() or (limits.own_timeout and isinstance(error, TimeoutError)):
            raise JudgeError(
                f"{field} was tried on two canned completions and did not return within {timeout_s:g} s; make it "
                f"return, or raise its timeout_s"
            ) from error
        raise JudgeError(
            f"{field} was tried on two canned completions and raised {kind_of(error)}: {error}{_where(error)}; a judge "
            f"must answer any text, or abstain"
        ) from error


def _where(error: BaseException) -> str:
    """The innermost frame, in parentheses."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f"{frames[-1].filename}, line {frames[-1].lineno}" if frames else ""
    if isinstance(error, (RaisedInChild, ProcessEnded)):
        where = error.where
    return where and f" ({where})"
