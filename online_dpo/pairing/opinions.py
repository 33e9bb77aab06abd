"""What a judge said about the completions of one prompt, as one function: `preference(i, j)`.

Between two scores the margin is their difference and the probability its sigmoid (Bradley-Terry); between two
completions that were compared the probability is the judge's and the margin its logit.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from online_dpo.types import Verdict

Indices = tuple[int, int]

PROBABILITY_EPS = 1e-6
"""Probabilities are clipped to [eps, 1 - eps]: a judge's "always" becomes a margin of 13.8, not of infinity."""


@dataclass(frozen=True, slots=True)
class Preference:
    """How much the first of two completions is preferred to the second."""

    margin: float  # score difference or logit of the probability, penalties included; finite
    probability: float  # sigmoid of the margin

    @property
    def is_strict(self) -> bool:
        # A margin under 1e-16 has a probability of one half in floating point, and names no winner.
        return self.margin > 0.0 and self.probability > 0.5

    def reversed(self) -> Preference:
        return Preference(-self.margin, 1.0 - self.probability)


class Opinion:
    """What was said about the completions of one prompt, as preferences."""

    def __init__(
        self,
        verdicts: Sequence[Verdict],
        indices: Sequence[int],
        *,
        penalties: Mapping[int, float] | None = None,
        unclosed_loses: bool = False,
    ) -> None:
        """Take in the verdicts.

        Args:
            verdicts: all about one prompt.
            indices: of the completions that may be compared.
            penalties: taken off the margins of some of them.
            unclosed_loses: whether a completion whose thought has no end loses to every one that there is an opinion
                on; otherwise there is no opinion on it.
        """
        self.indices = list(indices)
        self._penalties = penalties or {}
        self._scores = {v.first: v.score for v in verdicts if v.score is not None}
        self._silent: set[int | frozenset[int]] = set()  # completions and pairs that the judge abstained on
        self._wins: dict[Indices, list[float]] = {}  # (i, j) with i < j -> probabilities that i wins
        self._spreads: dict[Indices, list[float]] = {}  # (i, j) with i < j -> how far an ensemble disagrees
        self.unclosed = {v.first for v in verdicts if v.abstention == "unclosed"} & set(self.indices)
        self._losers = self.unclosed if unclosed_loses else set()
        self._score_spreads = {v.first: v.uncertainty for v in verdicts if v.score is not None}
        for verdict in verdicts:
            i, j = verdict.first, verdict.second
            if verdict.abstention == "unclosed" and unclosed_loses:
                continue
            if verdict.reason is not None:
                self._silent.add(i if j is None else frozenset((i, j)))
            elif verdict.probability is not None and j is not None:
                p = verdict.probability
                self._wins.setdefault((min(i, j), max(i, j)), []).append(p if i < j else 1.0 - p)
                if verdict.uncertainty is not None:
                    self._spreads.setdefault((min(i, j), max(i, j)), []).append(verdict.uncertainty)
        self.has_failures = any(v.failed and {v.first, v.second} & set(self.indices) for v in verdicts)

    def preference(self, i: int, j: int) -> Preference | None:
        """How much sample `i` is preferred to sample `j`; None where the judge did not say.

        Where both orders were judged the probability is their mean, which cancels a judge's bias for the first
        place. An abstention about one of the two, or about the two together, is not overruled by anything else.
        """
        if i > j:
            other = self.preference(j, i)
            return None if other is None else other.reversed()
        if self._silent & {i, j, frozenset((i, j))}:
            return None
        if i in self._losers or j in self._losers:
            # Whatever the judge's scale, and without penalties: one for a cut answer must not turn it round.
            p = PROBABILITY_EPS if i in self._losers else 1.0 - PROBABILITY_EPS
            return None if self._losers >= {i, j} else Preference(logit(p), p)
        handicap = self._penalties.get(j, 0.0) - self._penalties.get(i, 0.0)
        if (i, j) in self._wins:
            found = self._wins[i, j]
            p = min(max(sum(found) / len(found), PROBABILITY_EPS), 1.0 - PROBABILITY_EPS)
            return Preference(logit(p), p) if handicap == 0.0 else from_margin(logit(p) + handicap)
        if i in self._scores and j in self._scores:
            return from_margin(self._scores[i] - self._scores[j] + handicap)
        return None

    def score(self, i: int) -> float | None:
        """The score of sample `i`, less its penalty; None where the judge gave none."""
        if i in self._silent or i not in self._scores:
            return None
        return self._scores[i] - self._penalties.get(i, 0.0)

    def disagreement(self, i: int, j: int) -> float | None:
        """How far the judges of an ensemble disagree about two completions that `preference` knows; None = one judge.

        Between comparisons the standard deviation of their probabilities, the mean of both orders; between scores that
        of the difference, as if the two scores' errors were independent.
        """
        indices = (min(i, j), max(i, j))
        if indices in self._wins:
            spreads = self._spreads.get(indices)
            # Each divided before they are added: a judge may name any finite uncertainty, and two may overflow.
            return math.fsum(spread / len(spreads) for spread in spreads) if spreads else None
        first, second = self._score_spreads.get(i), self._score_spreads.get(j)
        return None if first is None or second is None else math.hypot(first, second)

    def strengths(self) -> dict[int, float]:
        """Mean probability of winning over the opponents judged, of every completion that has one."""
        won: dict[int, list[float]] = {}
        for i, j in combinations(self.indices, 2):
            preference = self.preference(i, j)
            if preference is not None:
                won.setdefault(i, []).append(preference.probability)
                won.setdefault(j, []).append(1.0 - preference.probability)
        return {i: math.fsum(values) / len(values) for i, values in sorted(won.items())}


def scores_nothing(verdicts: Sequence[Verdict]) -> bool:
    """Whether completions were compared and none was scored."""
    return any(v.probability is not None for v in verdicts) and all(v.score is None for v in verdicts)


def logit(probability: float) -> float:
    """Log-odds, of the probability clipped to [eps, 1 - eps]."""
    p = min(max(probability, PROBABILITY_EPS), 1.0 - PROBABILITY_EPS)
    return math.log(p) - math.log1p(-p)


def sigmoid(margin: float) -> float:
    """The probability whose log-odds are `margin`."""
    if margin >= 0.0:
        return 1.0 / (1.0 + math.exp(-margin))
    odds = math.exp(margin)
    return odds / (1.0 + odds)


def from_margin(margin: float) -> Preference:
    margin = min(max(margin, -sys.float_info.max), sys.float_info.max)  # two huge scores may differ by infinity
    return Preference(margin, sigmoid(margin))
