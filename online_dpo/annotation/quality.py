"""The bar: who answers hidden questions so badly, or so fast, that the votes should not count."""

from __future__ import annotations

import math
from dataclasses import dataclass

from online_dpo.annotation.records import Rules

Z = 1.6448536269514722
"""Quantile of the normal distribution: an upper limit that holds in 95 % of the cases."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What counts for or against somebody."""

    num_gold: int
    num_gold_right: int
    num_repeats: int
    num_repeats_same: int
    num_timed: int  # votes with an opinion
    num_too_fast: int


def wilson_interval(successes: int, trials: int, z: float = Z) -> tuple[float, float]:
    """Wilson's score interval for a share (Wilson, 1927): its limits are in [0, 1] for any number of trials.

    Args:
        successes: 0 .. trials.
        trials: at least 1.
        z: the quantile; by default each limit is passed in 5 % of the cases.
    """
    share, spread = successes / trials, z * z / trials
    middle = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / trials + spread / (4 * trials)) / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)


def shortfall(standing: Standing, rules: Rules) -> str | None:
    """Why somebody is below the bar, as a sentence for that person; None = not below it.

    Accuracy and consistency are below it where even the upper limit of their interval is: a few unlucky answers of
    somebody good are not enough, however often this is asked.
    """
    s = standing
    checks = (
        ("the questions with a known answer", "right", s.num_gold, s.num_gold_right, rules.min_accuracy),
        ("the questions shown twice", "the same", s.num_repeats, s.num_repeats_same, rules.min_consistency),
    )
    for what, how, trials, successes, bar in checks:
        if trials >= rules.min_checks and wilson_interval(successes, trials)[1] < bar:
            return f"of {what} you answered {successes} of {trials} {how}, and at least {bar:.0%} are wanted"
    if s.num_too_fast >= rules.min_checks and 2 * s.num_too_fast > s.num_timed:
        return f"{s.num_too_fast} of your {s.num_timed} votes took less than {rules.min_seconds:g} s"
    return None
