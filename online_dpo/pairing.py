"""Judged completions -> pairs. Every prompt ends as paired or under exactly one reason, and everything is counted.

Whatever a judge says, pairing sees one function: `preference(i, j)` of `online_dpo.opinions`.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

from online_dpo.opinions import Indices, Opinion
from online_dpo.types import Completion, Pair, Prompt, Verdict, derive_seed, group_by_prompt

Strategy = Literal["best_vs_worst", "random", "all_pairs"]
Truncated = Literal["keep", "drop", "penalise"]

DEFAULT_TRUNCATED_PENALTY = 1.0

OUTCOMES = (
    "paired",
    "too_few_completions",  # fewer than two were sampled
    "truncated",  # fewer than two left without those cut by the length limit (truncated: drop)
    "empty_completions",  # fewer than two left that have tokens
    "duplicates",  # fewer than two different ones
    "judge_failed",  # no two were judged, and the judge failed on some
    "abstained",  # no two were judged
    "tie",  # the judge strictly prefers none
    "below_min_margin",  # it does, but by less than min_margin
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairing:
    """The pairs of a round and what became of everything else."""

    pairs: tuple[Pair, ...]  # in prompt order, then by sample indices
    outcomes: Mapping[str, int]  # every word of OUTCOMES -> prompts; sums to the prompts drawn
    counts: Mapping[str, int]  # num_... of completions, of two-completion comparisons, and of pairs


def build_pairs(
    prompts: Sequence[Prompt],
    completions: Sequence[Completion],
    verdicts: Sequence[Verdict],
    *,
    strategy: Strategy,
    min_margin: float,
    truncated: Truncated,
    truncated_penalty: float | None,
    seed: int,
    round_index: int,
) -> Pairing:
    """Make the pairs of one round. The order of completions and verdicts does not matter.

    Args:
        prompts: those drawn for the round; pairs come in their order.
        completions: of these prompts. Exact copies (by token ids) count once, under the lowest sample index.
        verdicts: about sample indices; every completion is in at least one.
        strategy: `best_vs_worst` takes the highest and lowest mean probability of winning over the opponents judged;
            `all_pairs` takes each strictly preferred pair; `random` draws one of these, so a tie or a pair below
            `min_margin` is never drawn.
        min_margin: smallest margin of a pair, in score units or logits.
        truncated: what to do with completions cut by the length limit.
        truncated_penalty: taken off a truncated side's margin where `truncated` is `penalise`; None = 1.
        seed: of the run; with round and prompt id it seeds the random strategy.
        round_index: of the round.

    Raises:
        ValueError: a prompt, sample or verdict occurs twice, a completion or verdict belongs to nothing else here, or a
            completion has no verdict.
    """
    _check_input(prompts, completions, verdicts)
    groups = group_by_prompt(completions)
    said: dict[str, list[Verdict]] = {}
    for verdict in verdicts:
        said.setdefault(verdict.prompt_id, []).append(verdict)
    penalty = 0.0
    if truncated == "penalise":
        penalty = DEFAULT_TRUNCATED_PENALTY if truncated_penalty is None else truncated_penalty
    pairs: list[Pair] = []
    outcomes: Counter[str] = Counter(dict.fromkeys(OUTCOMES, 0))
    counts = _count_completions(completions, verdicts)
    for prompt in prompts:
        answers, reason = _eligible(groups.get(prompt.prompt_id, []), drop_truncated=truncated == "drop", counts=counts)
        if reason is None:
            penalties = {c.sample_index: penalty * (c.finish_reason == "length") for c in answers}
            opinion = Opinion(said.get(prompt.prompt_id, []), [c.sample_index for c in answers], penalties=penalties)
            draw = random.Random(derive_seed(seed, "pairing", round_index, prompt.prompt_id))
            winners, reason = _choose(opinion, strategy, min_margin, draw, counts)
            by_index = {c.sample_index: c for c in answers}
            pairs.extend(_pair(prompt, by_index, opinion, winner) for winner in winners)
        outcomes[reason or "paired"] += 1
    counts["num_pairs"] = len(pairs)
    assert sum(outcomes.values()) == len(prompts), "a prompt was lost without a reason"
    return Pairing(pairs=tuple(pairs), outcomes=dict(outcomes), counts=dict(counts))


def _eligible(
    group: Sequence[Completion], *, drop_truncated: bool, counts: Counter[str]
) -> tuple[list[Completion], str | None]:
    """The completions of a group in sample order that may be paired, and the reason where they are too few."""
    if len(group) < 2:
        return [], "too_few_completions"
    kept = [c for c in group if not (drop_truncated and c.finish_reason == "length")]
    said = [c for c in kept if c.token_ids]  # nothing could be learned from the others
    first_of: dict[tuple[int, ...], Completion] = {}
    for completion in said:
        first_of.setdefault(completion.token_ids, completion)
    different = list(first_of.values())
    counts["num_duplicate_completions"] += len(said) - len(different)
    if len(kept) < 2:
        return [], "truncated"
    if len(said) < 2:
        return [], "empty_completions"
    if len(different) < 2:
        return [], "duplicates"
    return different, None


def _choose(
    opinion: Opinion, strategy: Strategy, min_margin: float, draw: random.Random, counts: Counter[str]
) -> tuple[list[Indices], str | None]:
    """(chosen, rejected) sample indices, and the reason where there are none."""
    candidates = list(combinations(opinion.indices, 2))
    judged = [(pair, p) for pair in candidates if (p := opinion.preference(*pair)) is not None]
    counts["num_unjudged_comparisons"] += len(candidates) - len(judged)
    counts["num_tied_comparisons"] += sum(not (p.is_strict or p.reversed().is_strict) for _, p in judged)
    if not judged:
        return [], "judge_failed" if opinion.has_failures else "abstained"
    if strategy == "best_vs_worst":
        duel = _best_and_worst(opinion)
        considered = [] if duel is None else [duel]
    else:
        considered = [pair if p.is_strict else pair[::-1] for pair, p in judged]
    strict = [(i, j) for i, j in considered if (p := opinion.preference(i, j)) is not None and p.is_strict]
    if not strict:
        return [], "tie"
    large = [(i, j) for i, j in strict if (p := opinion.preference(i, j)) is not None and p.margin >= min_margin]
    counts["num_comparisons_below_min_margin"] += len(strict) - len(large)
    if not large:
        return [], "below_min_margin"
    return ([draw.choice(large)] if strategy == "random" else large), None


def _best_and_worst(opinion: Opinion) -> Indices | None:
    """The strongest completion and the weakest of those it was judged against; None where their strengths are equal.

    Equals are told apart by the lowest sample index.
    """
    strengths = opinion.strengths()
    best = max(strengths, key=lambda i: (strengths[i], -i))
    opponents = [i for i in strengths if i != best and opinion.preference(best, i) is not None]
    worst = min(opponents, key=lambda i: (strengths[i], i))
    return (best, worst) if strengths[best] > strengths[worst] else None


def _pair(prompt: Prompt, by_index: Mapping[int, Completion], opinion: Opinion, indices: Indices) -> Pair:
    chosen, rejected = indices
    preference = opinion.preference(chosen, rejected)
    assert preference is not None
    return Pair(
        prompt=prompt,
        chosen=by_index[chosen],
        rejected=by_index[rejected],
        margin=preference.margin,
        probability=preference.probability,
    )


def _count_completions(completions: Sequence[Completion], verdicts: Sequence[Verdict]) -> Counter[str]:
    silent = [v for v in verdicts if v.reason is not None and v.second is None]
    return Counter(
        num_completions=len(completions),
        num_truncated_completions=sum(c.finish_reason == "length" for c in completions),
        num_empty_completions=sum(not c.token_ids for c in completions),
        num_duplicate_completions=0,
        num_failed_completions=len({(v.prompt_id, v.first) for v in silent if v.failed}),
        num_abstained_completions=len({(v.prompt_id, v.first) for v in silent if not v.failed}),
        num_unjudged_comparisons=0,
        num_tied_comparisons=0,
        num_comparisons_below_min_margin=0,
    )


def _check_input(prompts: Sequence[Prompt], completions: Sequence[Completion], verdicts: Sequence[Verdict]) -> None:
    def repeated(keys: Iterator[object]) -> list[object]:
        return [key for key, number in Counter(keys).items() if number > 1]

    if twice := repeated(p.prompt_id for p in prompts):
        raise ValueError(f"prompt {twice[0]} was drawn twice; its completions could not be told apart")
    if twice := repeated((c.prompt_id, c.sample_index) for c in completions):
        raise ValueError(f"completion {twice[0]} is there twice")
    if twice := repeated((v.prompt_id, v.first, v.second) for v in verdicts):
        raise ValueError(f"there are two verdicts on {twice[0]}")
    drawn = {p.prompt_id for p in prompts}
    sampled = {(c.prompt_id, c.sample_index) for c in completions}
    judged = {(v.prompt_id, i) for v in verdicts for i in (v.first, v.second) if i is not None}
    for found, among, message in (
        ({prompt_id for prompt_id, _ in sampled}, drawn, "a completion answers prompt {}, which was not drawn"),
        (judged, sampled, "a verdict is about completion {}, which was not sampled"),
        (sampled, judged, "completion {} has no verdict"),
    ):
        if strangers := found - among:
            raise ValueError(message.format(min(strangers)))
