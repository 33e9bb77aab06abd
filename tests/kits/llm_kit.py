"""An `llm` judge against a server on this machine, and what it is asked."""

from __future__ import annotations

import asyncio
from typing import Any

from judge_servers import Server
from pydantic import TypeAdapter

from judges.llm.judge import ChatJudge
from judges.protocol import Question, check_verdicts, collect_counts
from online_dpo.config.judges.llm import LlmJudge
from online_dpo.config.judges.section import JudgeSection
from online_dpo.types import Verdict


def section(server: Server | None = None, *, endpoint: dict[str, Any] | None = None, **fields: Any) -> LlmJudge:
    if server is not None:
        fields["endpoint"] = {"base_url": server.base_url, "model": "m", "max_wait_s": 0.05, **(endpoint or {})}
    return TypeAdapter(JudgeSection).validate_python({"type": "llm", "timeout_s": 5.0, **fields})


def question(*texts: str, name: str = "p", prompt: Any = "Say something.") -> Question:
    return Question(prompt_id=name, prompt=prompt, completions=texts)


def ask(judge: ChatJudge, *questions: Question) -> tuple[list[list[Verdict]], dict[str, int]]:
    async def main() -> list[list[Verdict]]:
        return check_verdicts(questions, await judge.judge(questions))

    with collect_counts() as counts:
        return asyncio.run(main()), dict(counts)


def brief(verdicts: list[Verdict]) -> list[tuple[Any, ...]]:
    return [
        (v.first, v.second, next(x for x in (v.score, v.probability, v.explanation) if x is not None)) for v in verdicts
    ]
