"""Shards, answers and verdicts as judges' hosts take and give them."""

from __future__ import annotations

from typing import Any

from online_dpo.types import Completion, Prompt, Shard, Verdict


def shard_of(*names: str) -> Shard:
    prompts = tuple(Prompt(prompt_id=n, token_ids=(1,), text=f"prompt {n}", metadata={"name": n}) for n in names)
    return Shard(index=3, prompts=prompts)


def answers(name: str, *texts: str, first: int = 0) -> list[Completion]:
    return [
        Completion(
            prompt_id=name,
            sample_index=first + i,
            token_ids=(7, first + i),
            text=text,
            finish_reason="stop",
            sampler_logps=(-1.0, -1.0),
            policy_version=0,
            seed=1,
        )
        for i, text in enumerate(texts)
    ]


def brief(verdicts: tuple[Verdict, ...]) -> list[tuple[Any, ...]]:
    """(prompt, first, second, what was said)"""
    return [
        (v.prompt_id, v.first, v.second, next(x for x in (v.score, v.probability, v.explanation) if x is not None))
        for v in verdicts
    ]
