"""Krippendorff's alpha between the members of an ensemble, over everything that was asked in a round.

Alpha is a ratio of sums over all units, so it cannot be averaged over shards. An ensemble measures what the sums are
made of, in whole numbers (`MemberAgreement`): they add up exactly, in whatever parts they come.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from typing import TypeAlias

from online_dpo.member_agreement import MemberAgreement

SCALE = 1 << 32
"""Scores are added up as whole multiples of 1 / SCALE."""

Units: TypeAlias = Mapping[tuple[int, ...], int]
"""How many judges chose each category -> number of units in which they did."""


def nominal_alpha(units: Units) -> float | None:
    """Krippendorff's alpha for categories that are all equally different from each other.

    `1 - (n - 1) * sum of o_ck / sum of n_c n_k` over the pairs of different categories, with the coincidences
    `o_ck = sum over units of n_uc (n_uk - [c = k]) / (m_u - 1)` (Krippendorff, "Computing Krippendorff's
    alpha-reliability", 2011, part C). Units with one vote say nothing about agreement.

    Returns:
        1 = they always agree, 0 = they agree as if by chance; None where only one category was ever chosen.
    """
    observed, totals = Fraction(0), Counter[int]()
    for votes, number in units.items():
        m = sum(votes)
        if m < 2:
            continue
        observed += Fraction(number * sum(votes[c] * (m - votes[c]) for c in range(len(votes))), m - 1)
        totals.update({c: number * votes[c] for c in range(len(votes))})
    n = totals.total()
    expected = sum(total * (n - total) for total in totals.values())
    return None if expected == 0 else float(1 - (n - 1) * observed / expected)


def interval_alpha(sums: Mapping[int, tuple[int, int, int, int]]) -> float | None:
    """Krippendorff's alpha for numbers, whose difference is the square of their distance.

    Args:
        sums: judges in a unit -> over the units with so many: how many units, the sum of all values, the sum of their
            squares, and the sum over units of the squared sum of a unit's values.

    Returns:
        As `nominal_alpha`; None where all values are equal.
    """
    n = total = squares = 0
    within = Fraction(0)
    for m, (units, value, square, squared_sums) in sums.items():
        if m >= 2:
            n, total, squares = n + m * units, total + value, squares + square
            # Over the ordered pairs (a, b) of a unit's values the sum of (a - b)^2 is 2 (m sum a^2 - (sum a)^2).
            within += Fraction(2 * (m * square - squared_sums), m - 1)
    between = 2 * (n * squares - total**2)
    return None if between == 0 else float(1 - (n - 1) * within / between)


def measure_agreement(votes: Iterable[tuple[int, ...]], scores: Iterable[Sequence[float]]) -> MemberAgreement:
    """What the members of an ensemble say, as it is added up.

    Args:
        votes: for each comparison, how many members are for the first, for the second, and for neither.
        scores: for each completion, the scores of the members that gave one.

    Returns:
        The sums over all that at least two members have an opinion on.
    """
    sums: dict[int, tuple[int, int, int, int]] = {}
    for found in scores:
        if len(found) > 1:
            values = [round(Fraction(score) * SCALE) for score in found]
            units, total, squares, squared_sums = sums.get(len(found), (0, 0, 0, 0))
            sums[len(found)] = (
                units + 1,
                total + sum(values),
                squares + sum(value**2 for value in values),
                squared_sums + sum(values) ** 2,
            )
    return MemberAgreement(votes=Counter(found for found in votes if sum(found) > 1), scores=sums)


def describe_ensembles(agreement: Mapping[str, MemberAgreement]) -> dict[str, dict[str, float | None]]:
    """Field of each ensemble -> `alpha` of its members' preferences, and `alpha_scores` where they score."""
    return {
        field: {
            **({"alpha": nominal_alpha(found.votes)} if found.votes else {}),
            **({"alpha_scores": interval_alpha(found.scores)} if found.scores else {}),
        }
        for field, found in sorted(agreement.items())
        if found.votes or found.scores
    }
