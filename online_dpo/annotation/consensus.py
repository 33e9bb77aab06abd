"""What the votes on a question come to: the probability that the first answer beats the second, or an abstention."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from online_dpo.annotation.dawid_skene import estimate
from online_dpo.annotation.records import LABELS, Disagreement, Method, Vote

_PHRASES = {"first": "for the first", "second": "for the second", "tie": "for a tie", "both_bad": "for both bad"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Consensus:
    """What people say about a question. Exactly one of `probability` and `reason` is set."""

    probability: float | None  # that the first answer beats the second; one half = a tie
    reason: str | None  # why there is none
    outcome: str | None  # the leading one, whatever becomes of it; None = no votes, or several lead
    support: float  # of the leading outcome: its share of the votes, or its probability (`dawid_skene`)
    num_votes: int


def find_consensus(
    answers: Mapping[str, Sequence[Vote]],
    *,
    method: Method,
    min_agreement: float,
    disagreement: Disagreement,
    evidence: Iterable[Vote] = (),
    known: Mapping[str, str] | None = None,
) -> dict[str, Consensus]:
    """The consensus on each question.

    A tie and a disagreement (no outcome has the support of `min_agreement`) are abstentions, or with
    `disagreement="soft"` probabilities near one half. Where most say that both are bad it is always an abstention: no
    answer is to be preferred.

    Args:
        answers: question -> its counted votes.
        method: `majority` counts votes; `dawid_skene` weighs them by how reliable their annotators are.
        min_agreement: the least support of an outcome, in [0, 1].
        disagreement: what becomes of ties and disagreements.
        evidence: votes on other questions, which tell `dawid_skene` more about the annotators: counted ones, and those
            on gold questions. Repeats are left out, because they are not independent of what they repeat.
        known: question -> true outcome, of the gold questions.
    """
    if method == "majority":
        weights: dict[str, Mapping[str, float]] = {name: _shares(votes) for name, votes in answers.items()}
    else:
        own = [vote for votes in answers.values() for vote in votes]
        further = [
            vote
            for vote in evidence
            if vote.question_id not in answers and vote.kind != "repeat" and vote.status in ("counted", "check")
        ]
        found = estimate([(v.question_id, v.annotator, v.outcome) for v in own + further], known).outcomes
        weights = {name: found.get(name, {}) for name in answers}
    return {
        name: _settle(votes, weights[name], min_agreement=min_agreement, disagreement=disagreement)
        for name, votes in answers.items()
    }


def _settle(
    votes: Sequence[Vote], weights: Mapping[str, float], *, min_agreement: float, disagreement: Disagreement
) -> Consensus:
    if not votes:
        return Consensus(probability=None, reason="no votes", outcome=None, support=0.0, num_votes=0)
    support = max(weights.values())
    # Shares of votes are equal exactly; probabilities of mirrored votes but for rounding.
    leaders = [label for label in LABELS if weights[label] > support - 1e-9]
    outcome = leaders[0] if len(leaders) == 1 else None
    agreed = outcome is not None and support >= min_agreement - 1e-9
    probability: float | None = weights["first"] + (weights["tie"] + weights["both_bad"]) / 2
    reason = None
    if outcome == "both_bad" and (agreed or disagreement == "soft"):
        reason = f"both bad: {_tally(votes)}"
    elif disagreement == "abstain" and not agreed:
        reason = f"disagreement: {_tally(votes)}"
    elif disagreement == "abstain" and outcome == "tie":
        reason = f"tie: {_tally(votes)}"
    return Consensus(
        probability=None if reason else min(max(probability or 0.0, 0.0), 1.0),
        reason=reason,
        outcome=outcome,
        support=support,
        num_votes=len(votes),
    )


def _shares(votes: Sequence[Vote]) -> dict[str, float]:
    counts = Counter(vote.outcome for vote in votes)
    return {label: counts[label] / len(votes) for label in LABELS} if votes else {}


def _tally(votes: Sequence[Vote]) -> str:
    counts = Counter(vote.outcome for vote in votes)
    return ", ".join(f"{counts[label]} {_PHRASES[label]}" for label in LABELS if counts[label])
