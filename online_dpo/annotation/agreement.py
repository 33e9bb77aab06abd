"""How far annotators agree, and whether somebody prefers a side of the screen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from online_dpo.annotation.quality import wilson_interval
from online_dpo.annotation.records import LABELS, AnnotatorFigures, Vote
from online_dpo.statistics.agreement import nominal_alpha

Z_TWO_SIDED = 1.959963984540054
"""Quantile of the normal distribution for an interval that holds in 95 % of the cases."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """A share with its 95 % interval (Wilson)."""

    share: float
    low: float
    high: float
    count: int  # out of how many


def krippendorff_alpha(answers: Iterable[Sequence[Vote]]) -> float | None:
    """Krippendorff's alpha between annotators, where first, second, tie and both bad are equally different.

    Args:
        answers: the counted votes of each question; the numbers of votes may differ.

    Returns:
        1 = they always agree, 0 = as if by chance; None where no question has two votes, or all votes are the same.
    """
    units = Counter(tuple(Counter(v.outcome for v in votes)[label] for label in LABELS) for votes in answers)
    return nominal_alpha(units)


def position_bias(figures: AnnotatorFigures) -> Share | None:
    """How often somebody chose the answer that was shown first, of the votes for one of the two.

    Sides are swapped at random, so a share whose interval does not hold one half tells of a habit. None = no such vote.
    """
    return share_of(figures.num_shown_first, figures.num_sided)


def share_of(successes: int, trials: int) -> Share | None:
    """A share with its interval; None of nothing."""
    if trials == 0:
        return None
    low, high = wilson_interval(successes, trials, Z_TWO_SIDED)
    return Share(share=successes / trials, low=low, high=high, count=trials)
