"""What of the figures about a judge (`statistics.judges`) deserves a warning."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

MIN_BIAS, MIN_Z = 0.1, 3.0
"""A bias is told where its share is further from one half than `MIN_BIAS`, and `MIN_Z` or more from chance.

Without a bias |z| > 3 comes in 0.3 % of rounds with many prompts, and in at most 2 exp(-9/2) = 2.2 % of those with few
(Hoeffding 1963): no least number of prompts is needed.
"""

MIN_CONSISTENCY, MIN_ASKED_TWICE = 0.8, 20
"""A judge is inconsistent if fewer than this share of at least so many comparisons asked twice come out alike."""

MAX_ABSTENTION_RATE = 0.5
"""A judge that abstains from a larger share of its verdicts gets a warning."""


def warnings(judge: str, figures: Mapping[str, Any]) -> Iterator[str]:
    """Sentences about what `report` found that a person should know.

    Args:
        judge: its name, such as `reward`.
        figures: of its report.
    """
    if (figures["abstention_rate"] or 0.0) > MAX_ABSTENTION_RATE:
        reasons = ", ".join(f"{number} x {reason}" for reason, number in figures["reasons"].items())
        yield f"judge {judge} abstains from {_percent(figures['abstention_rate'])} of its verdicts: {reasons}"
    consistency, num_orders = figures.get("order_consistency"), figures.get("num_asked_both_ways", 0)
    if is_large(figures, "first_wins"):
        place = "first" if figures["first_wins"] > 0.5 else "second"
        share = max(figures["first_wins"], 1.0 - figures["first_wins"])
        remedy = (
            "it was asked in both orders, which keeps this out of the pairs"
            if num_orders
            else "this is in the pairs: ask it in both orders (both_orders), where it can be"
        )
        yield (
            f"judge {judge} prefers the {place} place: what is shown {place} wins {_percent(share)} of "
            f"{figures['num_presented']} comparisons (z {figures['first_wins_z']:+.1f}); {remedy}"
        )
    if is_large(figures, "longer_wins"):
        length = "longer" if figures["longer_wins"] > 0.5 else "shorter"
        share = max(figures["longer_wins"], 1.0 - figures["longer_wins"])
        yield (
            f"judge {judge} prefers the {length} completion: it wins {_percent(share)} of {figures['num_unequal']} "
            f"comparisons (z {figures['longer_wins_z']:+.1f}); unless that is what it should reward, take another "
            f"judge or put a length_penalty around it"
        )
    asked_twice = {
        "in both orders": (consistency, num_orders),
        "again": (figures.get("repeat_agreement"), figures.get("num_repeated", 0)),
    }
    for how, (share, number) in asked_twice.items():
        if share is not None and share < MIN_CONSISTENCY and number >= MIN_ASKED_TWICE:
            yield (
                f"judge {judge} is inconsistent: asked {how}, it gives the same answer to {_percent(share)} of "
                f"{number} comparisons"
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


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
