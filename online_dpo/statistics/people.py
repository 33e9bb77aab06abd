"""What the committed votes tell about the people who gave them."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from online_dpo.statistics.agreement import nominal_alpha
from online_dpo.statistics.judges import Bias
from online_dpo.votes import CastVote

CHOICES = ("first", "second", "tie", "both_bad")
"""What a vote can say; a skip says nothing."""


def describe_votes(votes: Sequence[CastVote]) -> dict[str, Any]:
    """Figures of one judge in one round, or on one evaluation set.

    Args:
        votes: all on its questions; those that do not count are told apart.

    Returns:
        `num_questions`, `num_votes` (that count), `votes_per_question`, the shares of ties, of both bad and of skips,
        `alpha` (Krippendorff's, nominal; None without two votes on a question or with one choice alone),
        `not_counted` (status -> votes), `excluded` (pseudonyms), and `annotators`: pseudonym -> figures.
    """
    counted = [vote for vote in votes if vote.counts]
    by_question: dict[str, list[CastVote]] = {vote.question_id: [] for vote in votes}
    for vote in counted:
        by_question[vote.question_id].append(vote)
    said = Counter(vote.outcome for vote in votes if vote.status != "superseded")
    units = Counter(tuple(Counter(v.outcome for v in found)[c] for c in CHOICES) for found in by_question.values())
    return {
        "num_questions": len(by_question),
        "num_votes": len(counted),
        "votes_per_question": len(counted) / len(by_question) if by_question else None,
        **{f"{name}_share": _share(said[name], said.total()) for name in ("tie", "both_bad", "skip")},
        "alpha": nominal_alpha(units),
        "not_counted": dict(sorted(Counter(vote.status for vote in votes if not vote.counts).items())),
        "excluded": sorted({vote.annotator for vote in votes if vote.status == "excluded"}),
        "annotators": _annotators(votes, by_question),
    }


def place_bias(votes: Sequence[CastVote]) -> dict[str, Any]:
    """How often what was shown first wins, as a judge's report has it. A verdict does not know what was shown first."""
    wins: dict[str, list[bool]] = {}
    for vote in votes:
        if (won := vote.first_shown_won) is not None and vote.counts:
            wins.setdefault(vote.prompt_id, []).append(won)
    found = Bias.of(wins)
    return {"num_presented": found.num_comparisons, **found.figures("first_wins")}


def _annotators(votes: Sequence[CastVote], by_question: Mapping[str, Sequence[CastVote]]) -> dict[str, dict[str, Any]]:
    found: dict[str, list[CastVote]] = {}
    for vote in votes:
        if vote.status != "superseded":
            found.setdefault(vote.annotator, []).append(vote)
    return {name: _annotator(own, by_question) for name, own in sorted(found.items())}


def _annotator(own: Sequence[CastVote], by_question: Mapping[str, Sequence[CastVote]]) -> dict[str, Any]:
    """Of one person: votes, speed, how often what was shown first wins, and how often the others say the same."""
    sided = [won for vote in own if (won := vote.first_shown_won) is not None]
    same = [
        vote.outcome == other.outcome
        for vote in own
        for other in by_question[vote.question_id]
        if other.annotator != vote.annotator and vote.outcome in CHOICES
    ]
    return {
        "num_votes": len(own),
        "num_counted": sum(vote.counts for vote in own),
        "median_seconds": statistics.median(vote.seconds for vote in own),
        "first_shown_wins": _share(sum(sided), len(sided)),
        "agrees": _share(sum(same), len(same)),
    }


def _share(number: int, total: int) -> float | None:
    return number / total if total else None
