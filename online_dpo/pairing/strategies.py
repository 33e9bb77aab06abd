"""Which pairs of one prompt are taken: what may be paired, what a strategy looks at, filters, and its choice.

Every two completions end in exactly one count: `num_comparisons` is the sum of those of `DROPS` and of the pairs.
Equals are told apart by their sample indices: the lowest wins.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from online_dpo.config.judges.view import ViewSection
from online_dpo.config.pairing import PairingSection, Strategy
from online_dpo.pairing.answers import UNCLOSED, num_answer_tokens, read_answer
from online_dpo.pairing.opinions import Indices, Opinion
from online_dpo.pairing.similarity import alike
from online_dpo.types import Completion

DROPS = (
    "num_near_duplicate_comparisons",  # too alike (near_duplicate)
    "num_unjudged_comparisons",
    "num_tied_comparisons",
    "num_comparisons_beyond_length_ratio",
    "num_comparisons_below_min_margin",
    "num_comparisons_without_score",  # the chosen one has none, and min_chosen_score wants one
    "num_comparisons_below_min_chosen_score",
    "num_comparisons_not_taken",  # the strategy takes another one, or none
    "num_comparisons_over_cap",  # of max_pairs_per_prompt
    "num_comparisons_over_budget",
    "num_comparisons_without_label",  # the annotator failed or abstained
    "num_comparisons_tied_by_annotator",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Of one prompt."""

    winners: Sequence[Indices] = ()  # (chosen, rejected)
    reason: str | None = None  # why there are none


def choose(
    opinion: Opinion,
    rules: PairingSection,
    answers: Mapping[int, Completion],
    draw: random.Random,
    counts: Counter[str],
    view: ViewSection | None = None,
) -> Choice:
    """Choose a prompt's pairs.

    Args:
        opinion: of the judge, about `answers` alone.
        rules: strategy and filters.
        answers: sample index -> completion; at least two, all different.
        draw: of the strategies that draw.
        counts: of `DROPS` and `num_comparisons`; added to.
        view: what of a completion is the answer, whose text and length the filters look at; None = all of it.
    """
    every = list(combinations(opinion.indices, 2))
    read = {index: read_answer(answer.text, view) for index, answer in answers.items()}
    closed = [(i, j) for i, j in every if read[i].is_closed and read[j].is_closed]
    near = alike(closed, {index: answer.text for index, answer in read.items()}, rules.near_duplicate)
    apart = [indices for indices in every if indices not in near]
    counts["num_comparisons"] += len(every)
    counts["num_near_duplicate_comparisons"] += len(near)
    if not apart:
        return Choice(reason="near_duplicates")
    judged = [(indices, p) for indices in apart if (p := opinion.preference(*indices)) is not None]
    counts["num_unjudged_comparisons"] += len(apart) - len(judged)
    if not judged:
        few = len(opinion.indices) - len(opinion.unclosed) < 2 <= len(opinion.indices)
        return Choice(reason="judge_failed" if opinion.has_failures else UNCLOSED if few else "abstained")
    strict = [
        indices if p.is_strict else indices[::-1] for indices, p in judged if p.is_strict or p.reversed().is_strict
    ]
    counts["num_tied_comparisons"] += len(judged) - len(strict)
    considered = _considered(opinion, rules.strategy, [indices for indices, _ in judged], strict)
    counts["num_comparisons_not_taken"] += len(strict) - len(considered)
    if not considered:
        return Choice(reason="tie")
    left, reason = _filter(considered, opinion, rules, answers, counts)
    if not left:
        return Choice(reason=reason)
    winners = _take(left, opinion, rules, draw)
    unused = "num_comparisons_over_cap" if rules.strategy == "all_pairs" else "num_comparisons_not_taken"
    counts[unused] += len(left) - len(winners)
    return Choice(winners=winners)


def margin_of(opinion: Opinion, indices: Indices) -> float:
    """The margin of two completions that were judged."""
    preference = opinion.preference(*indices)
    assert preference is not None
    return preference.margin


def information(opinion: Opinion, indices: Indices) -> tuple[bool, float, float]:
    """How much a label of this pair would tell; larger = more.

    That is how far the judges of an ensemble disagree, in the unit of their scores or probabilities; among equals, and
    where there is one judge only, how close the probability is to one half.
    """
    disagreement = opinion.disagreement(*indices)
    return disagreement is not None, disagreement or 0.0, -abs(margin_of(opinion, indices))


def _considered(
    opinion: Opinion, strategy: Strategy, judged: Sequence[Indices], strict: Sequence[Indices]
) -> Sequence[Indices]:
    """What a strategy looks at of the strict pairs, `(chosen, rejected)`."""
    if not strategy.startswith("best_"):
        return strict
    strengths = opinion.strengths()
    best = max({i for indices in judged for i in indices}, key=lambda i: (strengths[i], -i))
    if strategy != "best_vs_worst":
        return [indices for indices in strict if indices[0] == best]
    # The worst whom it met. Where these two are equals there is no best: judges may prefer in circles.
    worst = min(
        (i for indices in judged if best in indices for i in indices if i != best), key=lambda i: (strengths[i], i)
    )
    indices = (best, worst)
    return [indices] if strengths[best] > strengths[worst] and indices in strict else []


def _filter(
    considered: Sequence[Indices],
    opinion: Opinion,
    rules: PairingSection,
    answers: Mapping[int, Completion],
    counts: Counter[str],
) -> tuple[Sequence[Indices], str]:
    """What no filter drops, and the filter that dropped the last."""
    lengths = {index: num_answer_tokens(answer) for index, answer in answers.items()}
    ratio, floor = rules.length_ratio, rules.min_chosen_score
    scores = {i: opinion.score(i) for i, _ in considered}

    def even(i: int, j: int) -> bool:
        return ratio is None or max(lengths[i], lengths[j]) <= ratio * min(lengths[i], lengths[j])

    def wide(i: int, j: int) -> bool:
        return margin_of(opinion, (i, j)) >= rules.min_margin

    def scored(i: int, _: int) -> bool:
        return floor is None or scores[i] is not None

    def good(i: int, _: int) -> bool:
        return floor is None or ((score := scores[i]) is not None and score >= floor)

    filters: tuple[tuple[Callable[[int, int], bool], str, str], ...] = (
        (even, "beyond_length_ratio", "length_ratio"),
        (wide, "below_min_margin", "below_min_margin"),
        (scored, "without_score", "no_score"),
        (good, "below_min_chosen_score", "below_min_chosen_score"),
    )
    left, reason = list(considered), ""
    for passes, name, outcome in filters:
        kept = [indices for indices in left if passes(*indices)]
        counts[f"num_comparisons_{name}"] += len(left) - len(kept)
        if left and not kept:
            reason = outcome
        left = kept
    return left, reason


def _take(left: Sequence[Indices], opinion: Opinion, rules: PairingSection, draw: random.Random) -> Sequence[Indices]:
    """A strategy's choice among the pairs that passed all filters, which are in the order of their indices."""

    def margin(indices: Indices) -> float:
        return margin_of(opinion, indices)

    match rules.strategy:
        case "best_vs_worst":
            return left
        case "random" | "best_vs_random":
            return [draw.choice(left)]
        case "max_margin" | "length_controlled":
            return [max(left, key=margin)]
        case "min_margin":
            return [min(left, key=margin)]
        case "uncertain":
            return [max(left, key=lambda indices: information(opinion, indices))]
        case "best_vs_second":
            strengths = opinion.strengths()
            return [max(left, key=lambda indices: (strengths[indices[1]], -indices[1]))]
        case "all_pairs":
            widest = sorted(left, key=margin, reverse=True)[: rules.max_pairs_per_prompt]  # stable
            return [indices for indices in left if indices in widest]
