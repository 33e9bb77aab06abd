"""A language model as a judge: behind any OpenAI-compatible endpoint, or in an engine that its host provides."""

from __future__ import annotations

from online_dpo.config.judges.llm import LlmJudge


def describe_llm(section: LlmJudge, field: str) -> str:
    """The judge in error messages."""
    if section.endpoint is not None:
        return f"{field}.endpoint {section.endpoint.base_url}, model {section.endpoint.model}"
    assert section.engine is not None
    return f"{field}.engine.path {section.engine.path}"
