"""What passes between the store of votes and those who use it. Imports neither torch nor anything of the web.

Times are seconds since 1970, as `time.time()` gives them. An `Outcome` is in the question's own order. What somebody
chose on the screen is a `Choice`, and nothing but the store turns one into the other.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, get_args

from online_dpo.errors import UserError
from online_dpo.types import PromptContent

Outcome: TypeAlias = Literal["first", "second", "tie", "both_bad", "skip"]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
LABELS: tuple[Outcome, ...] = ("first", "second", "tie", "both_bad")
"""The outcomes that are an opinion; a skip is none."""

MIRRORED: Mapping[str, Outcome] = {"first": "second", "second": "first", "tie": "tie", "both_bad": "both_bad"}
"""Outcome -> what it is called when the two answers change places."""

Choice: TypeAlias = Literal["left", "right", "tie", "both_bad", "skip"]
"""What an annotator chose on the screen; `left` is what was shown first."""

CHOICES: tuple[str, ...] = get_args(Choice)

VoteStatus: TypeAlias = Literal["counted", "superseded", "excluded", "check", "too_fast", "skipped"]
"""What became of a vote.

`counted`: a part of the consensus. `superseded`: undone by its annotator. `excluded`: its annotator is below the bar.
`check`: an answer to a hidden question, never part of a consensus. `too_fast`: given in less than `min_seconds`.
`skipped`: no opinion.
"""

GOLD = "gold"
"""The purpose of gold questions, which is no judge's name."""

AssignmentKind: TypeAlias = Literal["question", "gold", "repeat"]
Method: TypeAlias = Literal["majority", "dawid_skene"]
Disagreement: TypeAlias = Literal["abstain", "soft"]
Role: TypeAlias = Literal["annotator", "administrator"]
AnnotatorStatus: TypeAlias = Literal["active", "excluded", "revoked"]


class Refused(UserError):
    """The store does not do what an annotator asked for; the message is for that person."""


class Excluded(Refused):
    """The annotator is below the bar, and is given no questions any more."""


class Paused(Refused):
    """An administrator has paused the annotation."""


class LeaseLost(Refused):
    """The question was given to somebody else after the annotator's lease had run out."""


class NotUndoable(Refused):
    """There is no vote to undo, or the run has used it."""


class SignInRefused(Refused):
    """An invitation or a session is unknown, has run out, or was revoked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """How people are asked. Part of the store, so that the web server needs nothing else."""

    votes_per_question: int = 3  # by as many different people
    lease_s: float = 600.0  # how long an assignment is kept for somebody who does not answer or renew it
    gold_share: float = 0.1  # of the assignments: hidden questions with known answers
    repeat_share: float = 0.05  # of the assignments: an own earlier question with its sides swapped
    repeat_distance: int = 10  # as many other votes lie between a question and its repeat, at least
    min_seconds: float = 1.0  # a vote given faster does not count
    min_accuracy: float = 0.7  # the bar on gold questions
    min_consistency: float = 0.5  # the bar on repeats
    min_checks: int = 8  # nobody is excluded on fewer answers than these
    criteria: tuple[str, ...] = ()  # what the two answers may be compared on besides the outcome
    instructions: str = ""
    consensus: Method = "majority"  # of the export; the loop has it from the config of each judge
    min_agreement: float = 0.5
    disagreement: Disagreement = "abstain"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.votes_per_question < 1 or self.lease_s <= 0 or self.min_checks < 1 or self.repeat_distance < 1:
            raise ValueError("votes_per_question, lease_s, min_checks and repeat_distance must be above 0")
        if not (self.gold_share >= 0 and self.repeat_share >= 0 and self.gold_share + self.repeat_share < 1):
            raise ValueError("gold_share and repeat_share must not be negative, and their sum must be below 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """Two answers to one prompt, for people to compare. The same question has the same `question_id` in every run."""

    purpose: str  # the judge's name in the loop, such as `reward`
    round_index: int
    prompt_id: str
    prompt: PromptContent
    first: int  # sample indices
    second: int
    first_text: str
    second_text: str
    question_id: str = field(default="", compare=False)  # derived

    def __post_init__(self) -> None:
        parts = (
            self.purpose, self.round_index, self.prompt_id, json.dumps(self.prompt, sort_keys=True),
            self.first, self.second, self.first_text, self.second_text,
        )  # fmt: skip
        object.__setattr__(self, "question_id", _digest("question", *parts))


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldQuestion:
    """A hidden question whose answer is known."""

    prompt: PromptContent
    first_text: str
    second_text: str
    answer: Outcome

    def __post_init__(self) -> None:
        if self.answer not in LABELS:
            raise ValueError(f"the answer of a gold question is one of {', '.join(LABELS)}, not {self.answer!r}")

    @property
    def question(self) -> Question:
        """The same in the form of every other question."""
        prompt_id = _digest(json.dumps(self.prompt, sort_keys=True))[:16]
        return Question(
            purpose=GOLD, round_index=0, prompt_id=prompt_id, prompt=self.prompt, first=0, second=1,
            first_text=self.first_text, second_text=self.second_text,
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """A question that an annotator holds a lease on.

    The page may show `assignment_id`, `question.prompt` and `shown`, and must never learn the rest: not whether the
    question is hidden (`kind`), nor its judge, round or order.
    """

    assignment_id: str
    question: Question
    annotator: str
    swapped: bool
    granted_at: float
    expires_at: float
    kind: AssignmentKind

    @property
    def shown(self) -> tuple[str, str]:
        """The two answers as the annotator sees them: left, right."""
        texts = (self.question.first_text, self.question.second_text)
        return (texts[1], texts[0]) if self.swapped else texts


@dataclass(frozen=True, slots=True, kw_only=True)
class Vote:
    """What one person said about one question, once."""

    vote_id: str  # that of its assignment: an assignment has one vote at most
    question_id: str
    annotator: str  # the pseudonym
    outcome: Outcome
    ratings: Mapping[str, int]  # criterion -> -2 .. 2; above 0 = for the first answer
    comment: str
    swapped: bool
    seconds: float  # how long the annotator looked at the question, by the page's clock, at most by the store's
    at: float
    kind: AssignmentKind
    repeat_of: str | None  # the vote that this one repeats
    status: VoteStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class Annotator:
    """A person. `name` is for administrators alone; everything else knows the pseudonym `annotator`."""

    annotator: str
    name: str
    role: Role
    status: AnnotatorStatus
    reason: str | None = None  # why excluded


@dataclass(frozen=True, slots=True, kw_only=True)
class Invitation:
    """A new person's link. The token is in no file: only its hash is kept."""

    token: str
    annotator: Annotator
    expires_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class AnnotatorFigures:
    """How somebody has worked so far, over all votes that were not undone."""

    annotator: Annotator
    num_votes: int
    num_counted: int
    num_skipped: int
    num_too_fast: int
    median_seconds: float | None
    num_gold: int
    num_gold_right: int
    num_repeats: int
    num_repeats_same: int
    num_sided: int  # votes for one of the two answers
    num_shown_first: int  # of these: for the one that was shown first
    last_at: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Stuck:
    """A question that cannot get the votes it wants from the people there are."""

    question_id: str
    num_missing: int
    num_people: int  # active annotators who have neither answered nor skipped it
    num_skipped: int

    @property
    def reason(self) -> str:
        skipped = f"; skipped by: {self.num_skipped}" if self.num_skipped else ""
        return f"votes still wanted: {self.num_missing}; people who have not answered it: {self.num_people}{skipped}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where the questions stand (of a purpose and round, or all)."""

    num_questions: int
    num_settled: int  # they have the votes they want
    num_used: int  # of these: the run has taken their votes, which never change again
    num_votes: int  # counted
    num_missing: int  # votes still wanted
    num_leased: int  # questions that somebody looks at
    num_people: int  # active annotators
    stuck: tuple[Stuck, ...]
    paused: bool

    @property
    def is_settled(self) -> bool:
        return self.num_missing == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Everything that was asked and said, at one moment."""

    questions: Mapping[str, Question]  # by id, in the order of the queue, gold questions included
    unsettled: frozenset[str]  # questions that want more votes
    gold: Mapping[str, Outcome]  # gold question -> its answer
    votes: tuple[Vote, ...]  # in any status, oldest first
    rules: Rules

    def counted(self) -> dict[str, list[Vote]]:
        """The counted votes of each question, those without any included, gold questions not."""
        found: dict[str, list[Vote]] = {name: [] for name in self.questions if name not in self.gold}
        for vote in self.votes:
            if vote.status == "counted":
                found[vote.question_id].append(vote)
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """What an annotator's page shows of the way ahead."""

    num_done: int  # own votes, skips included, undone ones not
    num_left: int  # own share of the votes that are still wanted, at most what can still be given to this person
    seconds_left: float | None  # by the own median; None before the first vote


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """An entry of the audit: who did what, and when. `details` are JSON values."""

    number: int
    at: float
    who: str
    what: str
    details: Mapping[str, object]


def _digest(*parts: object) -> str:
    return hashlib.sha256(json.dumps([str(part) for part in parts]).encode()).hexdigest()
