"""What verdicts tell about their judge: abstentions, agreement, biases, and accuracy where labels are known.

Every figure looks at the preferences that pairing would see (`online_dpo.pairing.opinions`), whatever the judge's kind.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, TypeAlias

from online_dpo.data.completion_files import JudgeRow
from online_dpo.pairing.opinions import Opinion, Preference, sigmoid
from online_dpo.types import Completion, Verdict, group_by_prompt

Comparisons: TypeAlias = Mapping[tuple[str, int, int], Preference | None]
"""(prompt, i, j) with i < j -> the preference, None where the judge did not say."""

NUM_BINS = 10


def comparisons_between(
    completions: Sequence[Completion], verdicts: Sequence[Verdict]
) -> dict[tuple[str, int, int], Preference | None]:
    """Every two completions of each prompt, by sample index."""
    said = by_prompt(verdicts)
    found = {}
    for name, group in group_by_prompt(completions).items():
        opinion = Opinion(said.get(name, []), [completion.sample_index for completion in group])
        for i, j in combinations(opinion.indices, 2):
            found[name, i, j] = opinion.preference(i, j)
    return found


def comparisons_of(
    rows: Sequence[JudgeRow], verdicts: Sequence[Verdict]
) -> dict[tuple[str, int, int], Preference | None]:
    """Every two completions of each row."""
    return comparisons_between([completion for row in rows for completion in row.completions], verdicts)


def wins_by_prompt(
    completions: Sequence[Completion], comparisons: Comparisons
) -> tuple[dict[str, list[bool]], dict[str, list[bool]]]:
    """Of the comparisons with a winner: whether the earlier completion won, and whether the longer one did.

    Returns:
        Twice prompt id -> outcomes; the second without the comparisons of completions that are equally long.
    """
    lengths = {(c.prompt_id, c.sample_index): len(c.text) for c in completions}
    earlier: dict[str, list[bool]] = {}
    longer: dict[str, list[bool]] = {}
    for (name, i, j), preference in comparisons.items():
        side, difference = side_of(preference), lengths[name, i] - lengths[name, j]
        if side:
            earlier.setdefault(name, []).append(side > 0)
        if side and difference:
            longer.setdefault(name, []).append((side > 0) == (difference > 0))
    return earlier, longer


def by_prompt(verdicts: Sequence[Verdict]) -> dict[str, list[Verdict]]:
    """Prompt id -> what was said about it, in order."""
    said: dict[str, list[Verdict]] = {}
    for verdict in verdicts:
        said.setdefault(verdict.prompt_id, []).append(verdict)
    return said


def describe(rows: Sequence[JudgeRow], verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """Counts of verdicts, abstentions by reason, and how often the first and the longer completion win."""
    completions = [completion for row in rows for completion in row.completions]
    comparisons = comparisons_between(completions, verdicts)
    first, longer = (
        [outcome for found in wins.values() for outcome in found] for wins in wins_by_prompt(completions, comparisons)
    )
    return {
        "num_prompts": len(rows),
        "num_completions": len(completions),
        "num_verdicts": len(verdicts),
        "num_abstained": sum(v.reason is not None for v in verdicts),
        "num_failed": sum(v.failed for v in verdicts),
        "reasons": dict(Counter(v.explanation for v in verdicts if v.explanation is not None).most_common()),
        "num_comparisons": len(comparisons),
        "num_decided": len(first),
        "num_tied": sum(p is not None and not side_of(p) for p in comparisons.values()),
        "first_wins": share_of(first),
        "longer_wins": share_of(longer),
    }


def order_consistency(verdicts: Sequence[Verdict]) -> tuple[float | None, int]:
    """Of the comparisons that were asked both ways and answered: the share with the same winner, and their number.

    A judge that abstained because its two answers disagree did answer, and they count as different.
    """
    said = {(v.prompt_id, v.first, v.second): v.probability for v in verdicts if v.probability is not None}
    same = []
    for (name, i, j), p in said.items():
        if j is not None and i < j and (name, j, i) in said:
            same.append(_sign(p - 0.5) == _sign(0.5 - said[name, j, i]))
    conflicts = {
        (v.prompt_id, frozenset((v.first, v.second)))
        for v in verdicts
        if v.abstention in ("first_place", "second_place")
    }
    same += [False] * len(conflicts)
    return share_of(same), len(same)


def agreement(a: Comparisons, b: Comparisons) -> tuple[float | None, int]:
    """Of the comparisons that both answer: the share with the same outcome (first, second or tie), and their number."""
    same = [side_of(a[key]) == side_of(b[key]) for key in a if a[key] is not None and b.get(key) is not None]
    return share_of(same), len(same)


def against_gold(rows: Sequence[JudgeRow], verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """Accuracy and calibration against known labels.

    Two completions whose labels differ make a comparison: the judge is right where it prefers the better one, and its
    confidence is the probability of its winner. The score of a completion that is alone in its row is read as the
    log-odds that its label is above zero (labels 0 and 1, or negative and positive).
    """
    comparisons = comparisons_of(rows, verdicts)
    forecasts: list[tuple[float, bool]] = []  # confidence, right
    num_known = num_tied = num_silent = 0
    for row in rows:
        gold = row.gold or ()
        for i, j in combinations(range(len(gold)), 2):
            if gold[i] == gold[j]:
                continue
            num_known += 1
            preference = comparisons[row.prompt.prompt_id, i, j]
            side = side_of(preference)
            if preference is None:
                num_silent += 1
            elif side == 0:
                num_tied += 1
            else:
                confidence = preference.probability if side > 0 else preference.reversed().probability
                forecasts.append((confidence, (side > 0) == (gold[i] > gold[j])))
    scores = {v.prompt_id: v.score for v in verdicts if v.score is not None}
    alone = [(row.prompt.prompt_id, row.gold[0] > 0) for row in rows if row.gold is not None and len(row.gold) == 1]
    labelled = [(scores[name], label) for name, label in alone if name in scores]
    num_silent += len(alone) - len(labelled)
    num_tied += sum(score == 0.0 for score, _ in labelled)
    forecasts += [(sigmoid(abs(s)), (s > 0.0) == label) for s, label in labelled if s != 0.0]
    figures: dict[str, Any] = {
        "num_known": num_known + len(alone),
        "num_right": sum(right for _, right in forecasts),
        "num_wrong": sum(not right for _, right in forecasts),
        "num_tied": num_tied,
        "num_abstained": num_silent,
        "accuracy": share_of([right for _, right in forecasts]),
        "ece": calibration_error(forecasts),
    }
    if labelled:
        figures["auc"] = auc(labelled)
    return figures


def calibration_error(forecasts: Sequence[tuple[float, bool]]) -> float | None:
    """Expected calibration error (Guo et al. 2017, arXiv:1706.04599, equation 3) over bins of equal width in [1/2, 1].

    Args:
        forecasts: the confidence in the own verdict, and whether it was right.
    """
    bins = reliability(forecasts)
    gaps = (abs(entry["confidence"] - entry["accuracy"]) * entry["number"] for entry in bins)
    return math.fsum(gaps) / len(forecasts) if forecasts else None


def reliability(forecasts: Sequence[tuple[float, bool]]) -> list[dict[str, float]]:
    """How often forecasts of about the same confidence were right: bins of equal width in [1/2, 1] that are not empty.

    Args:
        forecasts: as for `calibration_error`.

    Returns:
        `low` and `high` of each bin, the `number` of forecasts in it, their mean `confidence` and their `accuracy`.
    """
    bins: dict[int, list[tuple[float, bool]]] = {}
    for confidence, right in forecasts:
        bins.setdefault(min(int((confidence - 0.5) * 2 * NUM_BINS), NUM_BINS - 1), []).append((confidence, right))
    return [
        {
            "low": 0.5 + place / (2 * NUM_BINS),
            "high": 0.5 + (place + 1) / (2 * NUM_BINS),
            "number": len(found),
            "confidence": math.fsum(confidence for confidence, _ in found) / len(found),
            "accuracy": sum(right for _, right in found) / len(found),
        }
        for place, found in sorted(bins.items())
    ]


def auc(labelled: Sequence[tuple[float, bool]]) -> float | None:
    """The chance that a positive scores above a negative, ties one half; None where one of the two is missing."""
    positive = sorted(score for score, label in labelled if label)
    negative = sorted(score for score, label in labelled if not label)
    if not positive or not negative:
        return None
    wins = below = equal = 0
    for score in positive:
        while below < len(negative) and negative[below] < score:
            below += 1
        equal = below
        while equal < len(negative) and negative[equal] == score:
            equal += 1
        wins += below + equal  # twice the wins, ties being half of one
    return wins / (2 * len(positive) * len(negative))


def side_of(preference: Preference | None) -> int:
    """1 = the first is preferred, -1 = the second, 0 = neither."""
    if preference is None:
        return 0
    return int(preference.is_strict) - int(preference.reversed().is_strict)


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)


def share_of(values: Sequence[bool]) -> float | None:
    return sum(values) / len(values) if values else None
