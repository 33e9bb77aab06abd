"""What of the figures about a judge (`statistics.judges`) deserves a warning."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

MIN_BIAS, MIN_Z = 0.1, 3.0
"""A bias is told where its share is further from one half than `MIN_BIAS`, and `MIN_Z` or more from chance.

Without a bias |z| > 3 comes in 0.3 % of rounds with many prompts, and in at most 2 exp(-9/2) = 2.2 % of those with few
(Hoeffding 1963): no least number of prompts is needed.
"""

MIN_CONSISTENCY, MIN_ASKED_TWICE, MAX_CHANCE = 0.8, 20, 0.001
"""A judge is inconsistent if fewer than this share of at least so many comparisons asked twice come out alike. Of fewer
comparisons, if a judge with just that consistency would agree with itself so seldom with at most this probability."""

MAX_ABSTENTION_RATE = 0.5
"""A judge that abstains from a larger share of its verdicts gets a warning."""

MAX_FAILURE_RATE = 0.05
"""Calls that fail are nobody's intention: a smaller share of them deserves a warning."""

MAX_TIED, MIN_COMPARED = 0.9, 20
"""A judge hardly tells completions apart if more than this share of at least so many comparisons are ties."""


def warnings(judge: str, figures: Mapping[str, Any]) -> Iterator[str]:
    """Sentences about what `report` found that a person should know.

    Args:
        judge: its name, such as `reward`.
        figures: of its report.
    """
    yield from (f"judge {judge} {said}" for said in (*_silence(figures), *_ties(figures), *_biases(figures)))
    for how, share, number in _asked_twice(figures):
        if share is not None and is_inconsistent(share, number):
            yield (
                f"judge {judge} is inconsistent: asked {how}, it gives the same answer to {_percent(share)} of "
                f"{number} comparisons"
            )


def _silence(figures: Mapping[str, Any]) -> Iterator[str]:
    """Abstentions, or failed calls where only these are many."""
    rate, number, num_failed = figures["abstention_rate"] or 0.0, figures["num_verdicts"], figures["num_failed"]
    reasons = figures["reasons"]
    if rate > MAX_ABSTENTION_RATE:
        yield f"abstains from {_percent(rate)} of its verdicts: {_listed(reasons)}"
    elif num_failed > MAX_FAILURE_RATE * number:
        failed = {reason: count for reason, count in reasons.items() if reason.startswith("failed: ")}
        yield f"fails on {_percent(num_failed / number)} of its verdicts: {_listed(failed) or f'{num_failed} calls'}"


def _ties(figures: Mapping[str, Any]) -> Iterator[str]:
    num_scores = figures["num_verdicts"] - figures["num_abstained"]
    num_tied = figures.get("num_tied", 0)
    num_answered = num_tied + figures.get("num_decided", 0)
    if figures.get("num_distinct_scores") == 1 and num_scores >= MIN_COMPARED:
        yield f"gives the same score to all {num_scores} completions, so nothing can be learned from it"
    elif num_answered >= MIN_COMPARED and num_tied > MAX_TIED * num_answered:
        yield f"calls {_percent(num_tied / num_answered)} of {num_answered} comparisons ties, which make no pairs"


def _biases(figures: Mapping[str, Any]) -> Iterator[str]:
    if is_large(figures, "first_wins"):
        place = "first" if figures["first_wins"] > 0.5 else "second"
        share = max(figures["first_wins"], 1.0 - figures["first_wins"])
        remedy = (
            "it was asked in both orders, which keeps this out of the pairs"
            if figures.get("num_asked_both_ways")
            else "this is in the pairs: ask it in both orders (both_orders), where it can be"
        )
        remedy = "sides are drawn for each person, so that it cancels" if "people" in figures else remedy
        yield (
            f"prefers the {place} place: what is shown {place} wins {_percent(share)} of "
            f"{figures['num_presented']} comparisons (z {figures['first_wins_z']:+.1f}); {remedy}"
        )
    if is_large(figures, "longer_wins"):
        remedy = (
            "say so in instructions" if "people" in figures else "take another judge or put a length_penalty around it"
        )
        length = "longer" if figures["longer_wins"] > 0.5 else "shorter"
        share = max(figures["longer_wins"], 1.0 - figures["longer_wins"])
        yield (
            f"prefers the {length} completion: it wins {_percent(share)} of {figures['num_unequal']} comparisons "
            f"(z {figures['longer_wins_z']:+.1f}); unless that is what it should reward, {remedy}"
        )


def _asked_twice(figures: Mapping[str, Any]) -> tuple[tuple[str, float | None, int], ...]:
    return (
        ("in both orders", figures.get("order_consistency"), figures.get("num_asked_both_ways", 0)),
        ("again", figures.get("repeat_agreement"), figures.get("num_repeated", 0)),
    )


def judge_warnings(summary: Mapping[str, Any]) -> Iterator[str]:
    """Of all judges in a round's summary."""
    for judge, figures in summary.get("judges", {}).items():
        yield from warnings(judge, figures)
    for name, evaluation in summary["evaluation"].items():
        for judge, figures in evaluation.get("judges", {}).items():
            yield from (f"{warning} (on {name})" for warning in warnings(judge, figures["report"]))


def is_large(figures: Mapping[str, Any], name: str) -> bool:
    """Whether a bias is both large and more than chance."""
    share = figures.get(name)
    return share is not None and abs(share - 0.5) > MIN_BIAS and abs(figures[f"{name}_z"]) >= MIN_Z


def is_inconsistent(share: float | None, number: int) -> bool:
    """Whether too few comparisons that were asked twice came out alike.

    Args:
        share: of those that did; None without any.
        number: of all.
    """
    if share is None or share >= MIN_CONSISTENCY:
        return False
    if number >= MIN_ASKED_TWICE:
        return True
    p, alike = MIN_CONSISTENCY, round(share * number)
    return sum(math.comb(number, k) * p**k * (1 - p) ** (number - k) for k in range(alike + 1)) <= MAX_CHANCE


def _listed(reasons: Mapping[str, int]) -> str:
    return ", ".join(f"{number} x {reason}" for reason, number in reasons.items())


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
