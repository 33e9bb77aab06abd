"""Figures by domain, where prompts are of several: of a round's own samples, and of an evaluation set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from online_dpo.config.data import PromptsSection
from online_dpo.statistics.samples import mean
from online_dpo.types import DOMAIN, Completion, Items, Prompt, Verdict


def by_domain(prompts: Sequence[Prompt]) -> dict[str, frozenset[str]]:
    """Domain -> ids of its prompts, in the order of the domains' names."""
    found: dict[str, set[str]] = {}
    for prompt in prompts:
        found.setdefault(str(prompt.metadata[DOMAIN]), set()).add(prompt.prompt_id)
    return {domain: frozenset(found[domain]) for domain in sorted(found)}


def domain_figures(
    section: PromptsSection | None,
    prompts: Sequence[Prompt],
    completions: Sequence[Completion],
    verdicts: Sequence[Verdict],
    items: Items,
) -> dict[str, Any]:
    """`domains` of a round's summary, where its prompts are a mixture."""
    if section is None or not section.sources:
        return {}
    return {"domains": describe_domains(prompts, completions, verdicts, items)}


def describe_domains(
    prompts: Sequence[Prompt], completions: Sequence[Completion], verdicts: Sequence[Verdict], items: Items
) -> dict[str, dict[str, float | int | None]]:
    """A round by domain.

    Args:
        prompts: that it drew.
        completions: the policy's own of these.
        verdicts: of the training judge.
        items: pairs or labelled answers that came of it.

    Returns:
        Domain -> `num_prompts`, `num_prompts_used` (those with an item), `num_items`, `reward` (mean score), and
        length and truncation as `describe_samples` has them.
    """
    described: dict[str, dict[str, float | int | None]] = {}
    sampled = {(c.prompt_id, c.sample_index) for c in completions}
    for domain, ids in by_domain(prompts).items():
        own = [item.prompt.prompt_id for item in items if item.prompt.prompt_id in ids]
        said = [v for v in verdicts if v.prompt_id in ids and (v.prompt_id, v.first) in sampled]
        described[domain] = {
            "num_prompts": len(ids),
            "num_prompts_used": len(set(own)),
            "num_items": len(own),
            "reward": mean([v.score for v in said if v.score is not None]),
            **describe_samples([c for c in completions if c.prompt_id in ids]),
        }
    return described


def describe_samples(completions: Sequence[Completion]) -> dict[str, float | int | None]:
    """Number, mean length in tokens, and how many were cut at the limit."""
    return {
        "num_completions": len(completions),
        "num_truncated_completions": sum(c.finish_reason == "length" for c in completions),
        "length_mean": mean([len(c.token_ids) for c in completions]),
    }
