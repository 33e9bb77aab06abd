"""What a round tells about its candidates, and what it tells about the policy's own samples alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from online_dpo.config.run import RunConfig
from online_dpo.statistics.samples import mean
from online_dpo.store.candidates import CandidateCommits
from online_dpo.store.round_store import RoundStore
from online_dpo.store.run_store import RunStore
from online_dpo.types import Completion, Items, Labelled, Pair, Verdict

CANDIDATES = "candidates"
"""The figure of a round's summary that has those of each writer."""

MANY_FAILED = 0.5
"""The share of a writer's answers that may fail without a warning."""


def own_and_judged(
    completions: Sequence[Completion], unjudged: Collection[str]
) -> tuple[list[Completion], list[Completion]]:
    """The policy's samples, and all that a judge is asked about."""
    own = [completion for completion in completions if completion.source is None]
    return own, [completion for completion in completions if completion.source not in unjudged]


def scores_of(completions: Sequence[Completion], verdicts: Sequence[Verdict]) -> list[float]:
    """The scores that were given to some completions, in the order of the verdicts."""
    wanted = {(completion.prompt_id, completion.sample_index) for completion in completions}
    return [v.score for v in verdicts if v.score is not None and (v.prompt_id, v.first) in wanted]


def describe_candidates(
    config: RunConfig,
    store: RoundStore,
    completions: Sequence[Completion],
    verdicts: Sequence[Verdict],
    items: Items,
) -> dict[str, Any]:
    """Of each writer: what became of its answers, how they were judged and how they came out; nothing without any."""
    if not config.candidates:
        return {}
    commits = CandidateCommits(store)
    chosen, rejected = _sides(items)
    found = {}
    for writer in config.candidates:
        source, total = writer.source, commits.total(writer.source)
        answers = [completion for completion in completions if completion.source == source]
        found[source] = {
            "num_candidates": len(answers),
            "outcomes": dict(total.outcomes),
            "length_mean": mean([len(answer.token_ids) for answer in answers]),
            "reward": mean(scores_of(answers, verdicts)),
            "num_chosen": chosen[source],
            "num_rejected": rejected[source],
            "reasons": dict(total.details),
            "counters": dict(total.counters),
        }
    return {CANDIDATES: found}


def _sides(items: Items) -> tuple[Counter[str | None], Counter[str | None]]:
    """How often each writer's answers are chosen and rejected, or desirable and undesirable."""
    chosen, rejected = Counter[str | None](), Counter[str | None]()
    for item in items:
        if isinstance(item, Pair):
            chosen[item.chosen.source] += 1
            rejected[item.rejected.source] += 1
        elif isinstance(item, Labelled):
            (chosen if item.desirable else rejected)[item.completion.source] += 1
    return chosen, rejected


def candidate_warnings(store: RunStore, index: int, summary: Mapping[str, Any]) -> list[str]:
    """What a person should look at: a budget that is used up, told once; a writer that fails, or gives nothing."""
    told = []
    for source, found in summary.get(CANDIDATES, {}).items():
        outcomes: Counter[str] = Counter(found["outcomes"])
        wanted, failed = outcomes.total(), outcomes["failed"]
        before = CandidateCommits(store.round(index - 1)).total(source).outcomes if index else {}
        if outcomes["over_budget"] and not before.get("over_budget"):
            told.append(
                f"the budget of the writer {source} is used up: {outcomes['over_budget']} of {wanted} answers were not "
                f"asked for, and the run goes on without it; raise its budget and resume to have it again"
            )
        if wanted and failed > MANY_FAILED * wanted:
            reasons = "; ".join(f"{number} x {reason}" for reason, number in found["reasons"].items())
            told.append(f"the writer {source} failed on {failed} of {wanted} answers ({reasons})")
        elif not outcomes["kept"] and outcomes["over_budget"] < wanted:
            reasons = ", ".join(f"{name} {number}" for name, number in outcomes.items())
            told.append(f"the writer {source} gave none of the {wanted} answers that were wanted of it ({reasons})")
    return told
