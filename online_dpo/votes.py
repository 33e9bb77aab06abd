"""What one person said about two answers, as a run commits it beside the verdict that rests on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class CastVote:
    """A vote that was taken from the run's annotation store when its question was settled."""

    prompt_id: str
    first: int  # sample index of each answer
    second: int
    question_id: str
    vote_id: str
    annotator: str  # a pseudonym
    outcome: str  # first, second, tie, both_bad or skip; in the order above, never that of the screen
    status: str  # `counted` = the verdict rests on it; any other says why it does not
    swapped: bool  # `second` was shown first
    seconds: float  # that the person took
    at: float  # when it was given, seconds since 1970
    ratings: Mapping[str, int] = field(default_factory=dict)  # criterion -> -2 .. 2; above 0 = for `first`
    comment: str = ""

    @property
    def counts(self) -> bool:
        """Whether the verdict rests on it."""
        return self.status == "counted"

    @property
    def first_shown_won(self) -> bool | None:
        """Whether it is for the answer that was shown first; None where it is for neither."""
        if self.outcome not in ("first", "second"):
            return None
        return (self.outcome == "second") == self.swapped
