"""Any sequence of operations against a model of a few lines: no vote is lost, doubled or misattributed."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from annotation_kit import T0, ask, check_file, gold, make_store
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from online_dpo.annotation.records import CHOICES, Assignment, Excluded, LeaseLost, NotUndoable, Refused, Vote
from online_dpo.annotation.store import AnnotationStore

WANTED, LEASE_S, DISTANCE = 2, 100.0, 2
PEOPLE = 4
people = st.integers(0, PEOPLE - 1)


class Store(RuleBasedStateMachine):
    """`given` holds what the model knows: every vote ever, in order, with what it must be."""

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="votes-"))
        self.path = self.folder / "annotation.sqlite"
        self.store = make_store(
            self.path, num_questions=6, num_gold=3, votes_per_question=WANTED, lease_s=LEASE_S, gold_share=0.2,
            repeat_share=0.3, repeat_distance=DISTANCE, min_checks=3, min_seconds=3.0,
        )  # fmt: skip
        # A second process has the file open as well.
        self.other = AnnotationStore.open(self.path)
        self.now = T0
        self.ids = [
            self.store.invite(f"Person {i}", expires_at=T0 + 1e9, now=T0).annotator.annotator for i in range(PEOPLE)
        ]
        self.num_questions = 6
        self.held: dict[str, list[Assignment]] = {}  # all assignments of each, the newest first
        self.given: dict[str, Vote] = {}  # vote id -> the vote as it was returned
        self.undone: set[str] = set()
        self.used: dict[str, tuple[Vote, ...]] = {}

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            check_file(self.path)
            self.store.close()
            self.other.close()
            shutil.rmtree(self.folder)

    def _allowed(self, person: str, act: Callable[[], None]) -> None:
        """Run `act`, which only somebody excluded may be refused for being so."""
        try:
            act()
        except Excluded:
            assert self._status(person) == "excluded"

    def _status(self, person: str) -> str:
        return next(f.annotator.status for f in self.other.annotators() if f.annotator.annotator == person)

    @rule(who=people, seconds=st.sampled_from([0.0, 1.0, 40.0, 150.0]))
    def ask_for_a_question(self, who: int, seconds: float) -> None:
        self.now += seconds
        person = self.ids[who]

        def act() -> None:
            found = self.store.next_assignment(person, self.now)
            if found is None:
                assert self._available(person) == []
                return
            if not self.held.get(person) or self.held[person][0].assignment_id != found.assignment_id:
                self.held.setdefault(person, []).insert(0, found)
            mine = [v for v in self.given.values() if v.annotator == person and v.vote_id not in self.undone]
            before = [v.question_id for v in mine if v.kind != "repeat"]
            if found.kind == "repeat":
                place = before.index(found.question.question_id)
                assert len(mine) - 1 - place >= DISTANCE
                earlier = next(v for v in mine if v.question_id == found.question.question_id)
                assert earlier.swapped != found.swapped
            else:
                assert found.question.question_id not in before

        self._allowed(person, act)

    def _available(self, person: str) -> list[int]:
        """Questions that are free, and that this person has not answered: by a plain look at all of them."""
        with contextlib.closing(sqlite3.connect(self.path)) as db:
            rows = db.execute(
                "SELECT position FROM questions WHERE answer IS NULL AND wanted > counted + leased AND position NOT IN"
                " (SELECT question FROM votes WHERE annotator = ? AND status != 'superseded')",
                (person,),
            )
            return [row[0] for row in rows]

    @rule(
        who=people,
        choice=st.sampled_from(CHOICES),
        seconds=st.sampled_from([1.0, 5.0, 40.0, 150.0]),
        age=st.integers(0, 3),
        through_other=st.booleans(),
    )
    def vote(self, who: int, choice: str, seconds: float, age: int, through_other: bool) -> None:
        """On the newest assignment, or on an older one whose page was left open."""
        person = self.ids[who]
        if len(self.held.get(person, [])) <= age:
            return
        self.now += seconds
        held = self.held[person][age]
        store = self.other if through_other else self.store

        def act() -> None:
            try:
                found = store.vote(held.assignment_id, person, choice, now=self.now)  # type: ignore[arg-type]
            except LeaseLost:
                assert held.assignment_id not in self.given
                return
            assert found.annotator == person and found.question_id == held.question.question_id
            if held.assignment_id in self.given:
                first = self.given[held.assignment_id]
                assert (found.outcome, found.at, found.seconds) == (first.outcome, first.at, first.seconds)
                return
            sides = {"left": ("first", "second"), "right": ("second", "first")}
            assert found.outcome == (sides[choice][held.swapped] if choice in sides else choice)
            self.given[held.assignment_id] = found

        self._allowed(person, act)

    @rule(whose=st.lists(people, max_size=6), choice=st.sampled_from(CHOICES))
    def answer(self, whose: list[int], choice: str) -> None:
        """What happens most of the time."""
        for who in whose:
            self.ask_for_a_question(who, 0.0)
            self.vote(who, choice, 5.0, 0, False)

    @rule(who=people, seconds=st.sampled_from([0.0, 50.0]))
    def undo(self, who: int, seconds: float) -> None:
        person = self.ids[who]
        self.now += seconds

        def act() -> None:
            mine = [v for v in self.given.values() if v.annotator == person and v.vote_id not in self.undone]
            try:
                again = self.store.undo(person, self.now)
            except NotUndoable:
                last = mine[-1].question_id if mine else None
                # Either there is none, the run has it, or it did not count and others took its place.
                assert last is None or last in self.used or self._current(mine[-1]).status not in ("counted", "check")
                return
            assert mine and again.question.question_id == mine[-1].question_id and again.swapped == mine[-1].swapped
            assert mine[-1].question_id not in self.used or mine[-1].kind != "question"
            self.undone.add(mine[-1].vote_id)
            self.held.setdefault(person, []).insert(0, again)

        self._allowed(person, act)

    def _current(self, vote: Vote) -> Vote:
        return next(v for v in self.other.votes() if v.vote_id == vote.vote_id)

    @rule(who=people)
    def release(self, who: int) -> None:
        if self.held.get(self.ids[who]):
            self.store.release(self.held[self.ids[who]][0].assignment_id, self.ids[who])

    @rule(who=people, seconds=st.sampled_from([0.0, 90.0]), age=st.integers(0, 2))
    def renew(self, who: int, seconds: float, age: int) -> None:
        self.now += seconds
        person = self.ids[who]
        if len(self.held.get(person, [])) > age:
            with contextlib.suppress(Refused):
                assert self.store.renew(self.held[person][age].assignment_id, person, self.now) == self.now + LEASE_S

    @rule(who=people)
    def exclude_or_reinstate(self, who: int) -> None:
        person = self.ids[who]
        if self._status(person) == "active":
            self.store.exclude(person, "by hand", "admin", self.now)
        else:
            self.store.reinstate(person, "admin", self.now)

    @rule()
    def add_questions(self) -> None:
        self.num_questions += 1
        questions = [ask(i) for i in range(self.num_questions)]
        assert self.other.add_questions(questions, self.now) == 1
        assert self.other.add_gold([gold(0)], self.now) == 0

    @rule(number=st.integers(0, 6))
    def take(self, number: int) -> None:
        question = ask(number).question_id
        if number < self.num_questions:
            taken = self.other.take_answers([question], self.now)
            if taken is not None:
                assert len({v.annotator for v in taken[question]}) == WANTED
                assert self.used.setdefault(question, taken[question]) == taken[question]

    @invariant()
    def nothing_is_lost_doubled_or_misattributed(self) -> None:
        if not hasattr(self, "given"):
            return
        votes = {vote.vote_id: vote for vote in self.other.votes()}
        assert list(votes) == list(self.given)
        for name, was in self.given.items():
            now = votes[name]
            assert (now.question_id, now.annotator, now.outcome, now.at, now.kind) == (
                was.question_id, was.annotator, was.outcome, was.at, was.kind
            )  # fmt: skip
            allowed = {"superseded"} if name in self.undone else {was.status}
            if was.status in ("counted", "excluded") and name not in self.undone:
                allowed = {"counted", "excluded"}
            assert now.status in allowed
        counted = Counter(v.question_id for v in votes.values() if v.status == "counted")
        assert all(number <= WANTED for number in counted.values())
        for question, taken in self.used.items():
            assert self.other.answers([question])[question] == taken
        progress = self.other.progress(self.now)
        assert progress.num_votes == counted.total()
        assert progress.num_votes + progress.num_missing == WANTED * self.num_questions


Store.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestStore = Store.TestCase
