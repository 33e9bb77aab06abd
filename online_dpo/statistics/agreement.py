"""Krippendorff's alpha between the members of an ensemble, over everything that was asked in a round.

Alpha is a ratio of sums over all units, so it cannot be averaged over shards. An ensemble counts what the sums are
made of, in whole numbers, among its counters: adding them up is then exact, in whatever parts they come.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, TypeAlias

VOTES, SCORES = "num_member_votes", "member_scores"
_STATISTIC = re.compile(rf"(?P<what>{VOTES}|{SCORES})\[(?P<field>[^\]]*)\] (?P<key>.+)")

SCALE = 1 << 32
"""Scores are counted as whole multiples of 1 / SCALE."""

Units: TypeAlias = Mapping[tuple[int, ...], int]
"""How many judges chose each category -> number of units in which they did."""


def nominal_alpha(units: Units) -> float | None:
    """Krippendorff's alpha for categories, of which none is nearer to one than to another.

    `1 - (n - 1) * sum of o_ck / sum of n_c n_k` over the pairs of different categories, with the coincidences
    `o_ck = sum over units of n_uc (n_uk - [c = k]) / (m_u - 1)` (Krippendorff, "Computing Krippendorff's
    alpha-reliability", 2011, part C). Units with one vote say nothing about agreement.

    Returns:
        1 = they always agree, 0 = as by chance; None where only one category was ever chosen.
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
    """Krippendorff's alpha for numbers, which differ by the square of their distance.

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


def count_votes(field: str, votes: Sequence[int]) -> dict[str, int]:
    """What an ensemble counts of one comparison.

    Args:
        field: of the ensemble, in the config.
        votes: judges for the first, for the second, and for neither.
    """
    return {f"{VOTES}[{field}] {'-'.join(map(str, votes))}": 1} if sum(votes) > 1 else {}


def count_scores(field: str, scores: Sequence[float]) -> dict[str, int]:
    """What an ensemble counts of one completion, given its members' scores."""
    m = len(scores)
    if m < 2:
        return {}
    values = [round(Fraction(score) * SCALE) for score in scores]
    parts = (1, sum(values), sum(value**2 for value in values), sum(values) ** 2)
    return {f"{SCORES}[{field}] {m}.{part}": number for part, number in enumerate(parts)}


def without_statistics(counters: Mapping[str, Any]) -> dict[str, Any]:
    """The counters that are for people."""
    return {name: number for name, number in counters.items() if not _STATISTIC.fullmatch(name)}


def describe_ensembles(counters: Mapping[str, Any]) -> dict[str, dict[str, float | None]]:
    """Field of each ensemble -> `alpha` of its members' preferences, and `alpha_scores` where they score."""
    votes: dict[str, dict[tuple[int, ...], int]] = {}
    scores: dict[str, dict[int, list[int]]] = {}
    for name, number in counters.items():
        match = _STATISTIC.fullmatch(name)
        if match is None:
            continue
        if match["what"] == VOTES:
            votes.setdefault(match["field"], {})[tuple(map(int, match["key"].split("-")))] = number
        else:
            m, part = map(int, match["key"].split("."))
            scores.setdefault(match["field"], {}).setdefault(m, [0] * 4)[part] = number
    return {
        field: {
            **({"alpha": nominal_alpha(votes[field])} if field in votes else {}),
            **({"alpha_scores": interval_alpha(_tuples(scores[field]))} if field in scores else {}),
        }
        for field in sorted(votes.keys() | scores.keys())
    }


def _tuples(sums: Mapping[int, Sequence[int]]) -> dict[int, tuple[int, int, int, int]]:
    return {m: (found[0], found[1], found[2], found[3]) for m, found in sums.items()}
