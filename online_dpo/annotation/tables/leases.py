"""Leases: an assignment is a question that somebody holds until it is answered, given back, or its time runs out."""

from __future__ import annotations

import json
import secrets
import sqlite3

from online_dpo.annotation.records import Assignment, LeaseLost, Question, Rules
from online_dpo.types import derive_seed


def grant(
    db: sqlite3.Connection,
    annotator: str,
    position: int,
    kind: str,
    rules: Rules,
    now: float,
    *,
    repeat_of: str | None = None,
    seconds_before: float = 0.0,
) -> Assignment:
    """Give a question to an annotator who holds no other."""
    question_id = db.execute("SELECT question_id FROM questions WHERE position = ?", (position,)).fetchone()[0]
    swapped = derive_seed(rules.seed, "sides", annotator, question_id) & 1
    if kind == "repeat":
        swapped = 1 - swapped
    assignment_id = secrets.token_hex(8)
    db.execute(
        "INSERT INTO assignments (assignment_id, question, annotator, kind, swapped, repeat_of, seconds_before,"
        " granted_at, expires_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (assignment_id, position, annotator, kind, swapped, repeat_of, seconds_before, now, now + rules.lease_s),
    )
    if kind == "question" and not _lease(db, position):
        raise AssertionError(f"question {question_id} has no free slot")
    return read_assignment(db, assignment_id)


def read_assignment(db: sqlite3.Connection, assignment_id: str) -> Assignment:
    row = db.execute(
        "SELECT * FROM assignments AS a JOIN questions AS q ON a.question = q.position WHERE a.assignment_id = ?",
        (assignment_id,),
    ).fetchone()
    return Assignment(
        assignment_id=row["assignment_id"], question=question_of(row), annotator=row["annotator"],
        swapped=bool(row["swapped"]), granted_at=row["granted_at"], expires_at=row["expires_at"], kind=row["kind"],
    )  # fmt: skip


def question_of(row: sqlite3.Row) -> Question:
    return Question(
        purpose=row["purpose"], round_index=row["round_index"], prompt_id=row["prompt_id"],
        prompt=json.loads(row["prompt"]), first=row["first"], second=row["second"],
        first_text=row["first_text"], second_text=row["second_text"],
    )  # fmt: skip


def renew(db: sqlite3.Connection, assignment_id: str, annotator: str, rules: Rules, now: float) -> float:
    """Keep an assignment for another `lease_s`; one that has run out is taken again while it is free.

    Raises:
        LeaseLost: it is not.
    """
    row = hold(db, assignment_id, annotator, now)
    db.execute("UPDATE assignments SET expires_at = ? WHERE number = ?", (now + rules.lease_s, row["number"]))
    return now + rules.lease_s


def release(db: sqlite3.Connection, assignment_id: str, annotator: str) -> None:
    """Give a question back unanswered; nothing happens where it is not held."""
    row = _find(db, assignment_id, annotator)
    if row is not None and row["state"] == "open":
        end_lease(db, row, "released")


def hold(db: sqlite3.Connection, assignment_id: str, annotator: str, now: float) -> sqlite3.Row:
    """The row of an assignment that is open, or that is opened again because its question is still free.

    Raises:
        LeaseLost: the question went to somebody else, or the assignment is over.
    """
    expire_leases(db, now)
    row = _find(db, assignment_id, annotator)
    if row is None:
        raise LeaseLost("this question is not assigned to you: load the page again")
    if row["state"] == "open":
        return row
    if row["state"] in ("voted", "undone"):
        raise LeaseLost("this question is answered: load the page again")
    has_other = db.execute(
        "SELECT 1 FROM assignments WHERE annotator = ?"
        " AND (state = 'open' OR (state = 'voted' AND question = ? AND kind = ?))",
        (annotator, row["question"], row["kind"]),
    ).fetchone()
    if has_other or (row["kind"] == "question" and not _lease(db, row["question"])):
        raise LeaseLost("your time for this question had run out, and it is given away: go on with the next one")
    db.execute("UPDATE assignments SET state = 'open' WHERE number = ?", (row["number"],))
    return row


def expire_leases(db: sqlite3.Connection, now: float) -> None:
    """Take back what nobody has renewed in time."""
    for row in db.execute("SELECT * FROM assignments WHERE state = 'open' AND expires_at <= ?", (now,)).fetchall():
        end_lease(db, row, "expired")


def end_lease_of(db: sqlite3.Connection, annotator: str) -> None:
    """Give back what an annotator holds."""
    row = db.execute("SELECT * FROM assignments WHERE annotator = ? AND state = 'open'", (annotator,)).fetchone()
    if row:
        end_lease(db, row, "released")


def reopen(db: sqlite3.Connection, position: int) -> None:
    """Everybody's search begins at this question again, at the latest."""
    db.execute("UPDATE annotators SET frontier = ? WHERE frontier > ?", (position, position))


def end_lease(db: sqlite3.Connection, row: sqlite3.Row, state: str) -> None:
    db.execute("UPDATE assignments SET state = ? WHERE number = ?", (state, row["number"]))
    if row["kind"] == "question":
        db.execute("UPDATE questions SET leased = leased - 1 WHERE position = ?", (row["question"],))


def _lease(db: sqlite3.Connection, position: int) -> bool:
    """Take one of a question's slots, if one is free."""
    query = "UPDATE questions SET leased = leased + 1 WHERE position = ? AND free > 0"
    return db.execute(query, (position,)).rowcount == 1


def _find(db: sqlite3.Connection, assignment_id: str, annotator: str) -> sqlite3.Row | None:
    found: sqlite3.Row | None = db.execute(
        "SELECT * FROM assignments WHERE assignment_id = ? AND annotator = ?", (assignment_id, annotator)
    ).fetchone()
    return found
