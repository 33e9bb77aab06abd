"""How far the members of an ensemble of judges agree: one of the records that cross rooms (see `types`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberAgreement:
    """How far the members of an ensemble agree, as whole numbers: sums over any parts add up exactly."""

    # (votes for the first, for the second, for a tie) of one comparison -> comparisons with these votes.
    votes: Mapping[tuple[int, ...], int] = field(default_factory=dict)
    # Members that scored a completion -> over these completions: how many, the sum of all scores, the sum of their
    # squares, and the sum of each completion's squared sum; scores as multiples of 2^-32.
    scores: Mapping[int, tuple[int, int, int, int]] = field(default_factory=dict)

    def plus(self, other: MemberAgreement) -> MemberAgreement:
        """The sums over both parts."""
        votes, scores = dict(self.votes), dict(self.scores)
        for key, number in other.votes.items():
            votes[key] = votes.get(key, 0) + number
        for members, (count, total, squares, squared) in other.scores.items():
            a, b, c, d = scores.get(members, (0, 0, 0, 0))
            scores[members] = (a + count, b + total, c + squares, d + squared)
        return MemberAgreement(votes=votes, scores=scores)

    def to_json(self) -> dict[str, list[list[int]]]:
        """Rows of whole numbers: votes with how many comparisons had them, members with their four sums."""
        return {
            "votes": [[*votes, number] for votes, number in sorted(self.votes.items())],
            "scores": [[members, *sums] for members, sums in sorted(self.scores.items())],
        }

    @classmethod
    def from_json(cls, rows: Mapping[str, Sequence[Sequence[int]]]) -> MemberAgreement:
        """The inverse of `to_json`."""
        return cls(
            votes={tuple(votes): number for *votes, number in rows["votes"]},
            scores={members: (a, b, c, d) for members, a, b, c, d in rows["scores"]},
        )
