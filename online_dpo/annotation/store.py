"""The store of questions, votes and people: one SQLite file, one transaction for each change."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType

from online_dpo.annotation.records import (
    Annotator,
    AnnotatorFigures,
    Assignment,
    Choice,
    Event,
    GoldQuestion,
    Invitation,
    Outlook,
    Paused,
    Progress,
    Question,
    Role,
    Rules,
    Snapshot,
    Vote,
)
from online_dpo.annotation.tables import accounts, asking, events, figures, leases, queue, settings, voting
from online_dpo.annotation.tables.database import AnnotationStoreError, Database

FILE = Path("annotation") / "annotation.sqlite"
"""Where the store is in a run directory."""


class AnnotationStore:
    """What the judge's process and the web server's share. Safe for many threads, and for several processes.

    A change is durable when the method returns: also after a loss of power. Nothing is ever deleted. `now` is the time
    in seconds since 1970, and `by` who does it, for the events: a pseudonym, or `run`.
    """

    def __init__(self, database: Database) -> None:
        """Use `create` or `open`."""
        self._database = database

    @classmethod
    def create(cls, path: Path, rules: Rules, now: float) -> AnnotationStore:
        """Make the file and its folder, or open the file that is there and give it these rules from now on.

        Raises:
            AnnotationStoreError: the file cannot be used.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise AnnotationStoreError(f"{path.parent} cannot be made: {error.strerror}") from error
        database = Database(path)
        database.create()
        with database.writing() as db:
            known, text = settings.read(db, "rules"), json.dumps(asdict(rules), sort_keys=True)
            if known != text:
                settings.write(db, "rules", text)
                events.record(db, now, events.RUN, "rules changed" if known else "created", asdict(rules))
        return cls(database)

    @classmethod
    def open(cls, path: Path) -> AnnotationStore:
        """Open a file that is there.

        Raises:
            AnnotationStoreError: it is missing, or cannot be used.
        """
        if not path.is_file():
            raise AnnotationStoreError(f"there is no {path}: a run with a human judge makes it when it asks people")
        database = Database(path)
        database.check()
        return cls(database)

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def __enter__(self) -> AnnotationStore:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    @property
    def path(self) -> Path:
        """The file."""
        return self._database.path

    @property
    def rules(self) -> Rules:
        """How people are asked at the moment."""
        with self._database.reading() as db:
            return settings.rules(db)

    # ---- questions, for the judge

    def add_questions(self, questions: Sequence[Question], now: float) -> int:
        """Put questions into the queue, or ask withdrawn ones again. Returns how many were new.

        Those that are in it and not settled want as many votes as the rules say now.
        """
        with self._database.writing() as db:
            return asking.add_questions(db, questions, settings.rules(db), now)

    def add_gold(self, questions: Sequence[GoldQuestion], now: float) -> int:
        """Add hidden questions; known ones stay as they are. Returns how many were new."""
        with self._database.writing() as db:
            return asking.add_gold(db, questions, now)

    def answers(self, question_ids: Iterable[str]) -> dict[str, tuple[Vote, ...]]:
        """The counted votes of each question, oldest first. They may still change: see `take_answers`."""
        with self._database.reading() as db:
            return voting.counted_votes(db, question_ids)

    def num_missing(self, question_ids: Iterable[str]) -> int:
        """How many votes these questions still want, all together."""
        with self._database.reading() as db:
            return asking.num_missing(db, question_ids)

    def take_answers(self, question_ids: Iterable[str], now: float) -> dict[str, tuple[Vote, ...]] | None:
        """The votes of questions that are all settled, which never change from then on; None where one is not.

        Taking the same questions again gives the same votes: so does a run that was killed in between.
        """
        ids = list(question_ids)
        with self._database.writing() as db:
            if asking.num_missing(db, ids):
                return None
            asking.use(db, ids, now)
            return voting.counted_votes(db, ids)

    def withdraw_others(self, question_ids: Iterable[str], up_to_round: int, now: float) -> int:
        """Ask nobody any more what the run does not wait for, such as questions of rounds that were taken off it.

        Their votes stay, and `add_questions` asks them again.

        Args:
            question_ids: that the run waits for.
            up_to_round: questions of later rounds are left alone.
            now: the time.

        Returns:
            How many questions were withdrawn.
        """
        with self._database.writing() as db:
            return asking.withdraw_others(db, question_ids, up_to_round, now)

    def close_questions(self, question_ids: Iterable[str], by: str, now: float) -> int:
        """Be content with the votes that questions have, such as stuck ones. Returns how many were unsettled."""
        with self._database.writing() as db:
            return asking.close_questions(db, question_ids, by, now)

    def votes(self) -> list[Vote]:
        """Every vote that was ever given, in any status, oldest first."""
        with self._database.reading() as db:
            return voting.read_votes(db)

    def questions(self, question_ids: Iterable[str] | None = None) -> list[Question]:
        """Questions (all but gold ones, if none are named), in the order of the queue."""
        with self._database.reading() as db:
            return asking.read_questions(db, question_ids)

    def gold(self) -> dict[str, str]:
        """Question -> outcome that is known to be right, of the gold questions."""
        with self._database.reading() as db:
            return dict(db.execute("SELECT question_id, answer FROM questions WHERE answer IS NOT NULL").fetchall())

    def snapshot(self) -> Snapshot:
        """Everything that was asked and said, as of one moment."""
        with self._database.reading() as db:
            return figures.snapshot(db)

    # ---- voting, for an annotator's page

    def next_assignment(self, annotator: str, now: float) -> Assignment | None:
        """The question that the annotator is to answer. Asking again gives the same one, until it is answered.

        Returns:
            None where there is nothing to do (at the moment: leases of others may run out).

        Raises:
            Paused: nobody is given questions.
            Refused: this annotator may not answer; a subclass and the message say why.
        """
        with self._database.writing() as db:
            accounts.require_active(db, annotator)
            if settings.read(db, "paused"):
                raise Paused("the annotation is paused: come back later")
            return queue.next_assignment(db, annotator, settings.rules(db), now)

    def renew(self, assignment_id: str, annotator: str, now: float) -> float:
        """Keep an assignment; the page asks for it as long as it is looked at. Returns when the lease runs out.

        Raises:
            LeaseLost: it had run out and the question went to somebody else, or it is answered.
        """
        with self._database.writing() as db:
            accounts.require_active(db, annotator)
            return leases.renew(db, assignment_id, annotator, settings.rules(db), now)

    def release(self, assignment_id: str, annotator: str) -> None:
        """Give a question back, such as when the page is closed; nothing happens where it is not held."""
        with self._database.writing() as db:
            leases.release(db, assignment_id, annotator)

    def vote(
        self,
        assignment_id: str,
        annotator: str,
        choice: Choice,
        *,
        ratings: Mapping[str, int] | None = None,
        comment: str = "",
        seconds: float | None = None,
        now: float,
    ) -> Vote:
        """Record what the annotator chose on the screen. Sent twice, it is one vote: the second call returns it.

        Args:
            assignment_id: from `next_assignment`.
            annotator: who is signed in.
            choice: `left` is the answer that was shown first.
            ratings: criterion -> -2 .. 2; above 0 = the left answer is better.
            comment: at most `voting.MAX_COMMENT` characters.
            seconds: how long the page was looked at; None = since the assignment was granted.
            now: the time.

        Returns:
            The vote. Its status is `too_fast` where it does not count for that.

        Raises:
            LeaseLost: the question went to somebody else after the lease had run out.
            Refused: this annotator may not vote.
            ValueError: an argument is none that a page of ours would send.
        """
        with self._database.writing() as db:
            accounts.require_active(db, annotator)
            return voting.vote(
                db, assignment_id, annotator, choice, settings.rules(db), now,
                ratings=ratings or {}, comment=comment, seconds=seconds,
            )  # fmt: skip

    def undo(self, annotator: str, now: float) -> Assignment:
        """Take back the annotator's last vote, and give the question again; what is held meanwhile goes back.

        Raises:
            NotUndoable: there is none, the run has used it, or (of a skip) others have answered.
            Refused: this annotator may not vote.
        """
        with self._database.writing() as db:
            accounts.require_active(db, annotator)
            return voting.undo(db, annotator, settings.rules(db), now)

    def outlook(self, annotator: str) -> Outlook:
        """How much the annotator has done, and about how much is left."""
        with self._database.reading() as db:
            return figures.outlook(db, annotator)

    # ---- people

    def invite(
        self, name: str, *, expires_at: float, now: float, role: Role = "annotator", by: str = events.RUN
    ) -> Invitation:
        """Make a person with a link. The token is shown once: only its hash is kept."""
        with self._database.writing() as db:
            return accounts.invite(db, name, role, expires_at, settings.rules(db).seed, by, now)

    def invite_again(self, annotator: str, *, expires_at: float, by: str, now: float) -> Invitation:
        """A new link for a person; older links and sessions of theirs end."""
        with self._database.writing() as db:
            return accounts.invite_again(db, annotator, expires_at, by, now)

    def sign_in(self, token: str, now: float) -> Annotator:
        """The person whose link this is.

        Raises:
            SignInRefused: the link is unknown, has run out or was revoked.
        """
        with self._database.writing() as db:
            return accounts.sign_in(db, token, now)

    def open_session(self, annotator: str, expires_at: float, now: float) -> str:
        """A random token for the cookie of somebody who has signed in; only its hash is kept."""
        with self._database.writing() as db:
            return accounts.open_session(db, annotator, expires_at, now)

    def session(self, token: str, now: float) -> Annotator | None:
        """Whose session it is; None where it is unknown, has run out or was ended. Excluded people have sessions."""
        with self._database.reading() as db:
            return accounts.find_session(db, token, now)

    def close_session(self, token: str, now: float) -> None:
        """Sign out."""
        with self._database.writing() as db:
            accounts.close_session(db, token, now)

    def revoke(self, annotator: str, by: str, now: float) -> None:
        """End a person's links and sessions at once. Their votes stay as they are."""
        with self._database.writing() as db:
            accounts.revoke(db, annotator, by, now)

    def exclude(self, annotator: str, reason: str, by: str, now: float) -> None:
        """Stop counting a person's votes, other than those that the run has used, and ask others instead."""
        with self._database.writing() as db:
            accounts.read_annotator(db, annotator)
            voting.exclude(db, annotator, reason, by, now)

    def reinstate(self, annotator: str, by: str, now: float) -> int:
        """Undo an exclusion. Votes count again where others have not answered meanwhile. Returns how many do."""
        with self._database.writing() as db:
            accounts.read_annotator(db, annotator)
            return voting.reinstate(db, annotator, by, now)

    # ---- for administrators

    def pause(self, by: str, now: float) -> None:
        """Give nobody a question until `unpause`; votes on what people hold are taken."""
        self._set_paused("1", by, now)

    def unpause(self, by: str, now: float) -> None:
        """Go on."""
        self._set_paused("", by, now)

    def progress(self, now: float, *, purpose: str | None = None, round_index: int | None = None) -> Progress:
        """Where the questions of a judge and a round stand; None = all of them. Gold questions are none of these."""
        with self._database.reading() as db:
            return figures.progress(
                db, bool(settings.read(db, "paused")), now, purpose=purpose, round_index=round_index
            )

    def annotators(self) -> list[AnnotatorFigures]:
        """How everybody works who was ever invited, in the order of the invitations."""
        with self._database.reading() as db:
            return figures.annotator_figures(db)

    def events(self, *, after: int = 0, limit: int = 1000) -> list[Event]:
        """Who did what and when, oldest first, from the one after number `after`."""
        with self._database.reading() as db:
            return events.read_events(db, after=after, limit=limit)

    def _set_paused(self, value: str, by: str, now: float) -> None:
        with self._database.writing() as db:
            if settings.read(db, "paused") != value:
                settings.write(db, "paused", value)
                events.record(db, now, by, "paused" if value else "unpaused")
