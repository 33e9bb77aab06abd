"""Votes: giving one, taking the last one back, and what becomes of the votes of somebody below the bar."""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Iterable, Mapping, Sequence

from online_dpo.annotation.quality import Standing, shortfall
from online_dpo.annotation.records import CHOICES, Assignment, Choice, NotUndoable, Rules, Vote
from online_dpo.annotation.tables import leases
from online_dpo.annotation.tables.events import RUN, record

_ORDERED: Mapping[tuple[str, bool], str] = {
    ("left", False): "first",
    ("right", False): "second",
    ("left", True): "second",
    ("right", True): "first",
}
MAX_COMMENT = 10_000
MAX_RATING = 2


def vote(
    db: sqlite3.Connection,
    assignment_id: str,
    annotator: str,
    choice: Choice,
    rules: Rules,
    now: float,
    *,
    ratings: Mapping[str, int],
    comment: str,
    seconds: float | None,
) -> Vote:
    """Record what an annotator chose; see `AnnotationStore.vote`."""
    given = db.execute(
        "SELECT 1 FROM votes WHERE vote_id = ? AND annotator = ?", (assignment_id, annotator)
    ).fetchone()  # fmt: skip
    if given:
        return read_votes(db, "v.vote_id = ?", (assignment_id,))[0]
    _check(choice, ratings, comment, seconds, rules)
    row = leases.hold(db, assignment_id, annotator, now)
    swapped = bool(row["swapped"])
    elapsed = max(0.0, now - row["granted_at"])
    seconds = row["seconds_before"] + (elapsed if seconds is None else min(seconds, elapsed))
    if choice == "skip":
        status = "skipped"
    elif seconds < rules.min_seconds:
        status = "too_fast"
    else:
        status = "counted" if row["kind"] == "question" else "check"
    db.execute("UPDATE assignments SET state = 'voted' WHERE number = ?", (row["number"],))
    if row["kind"] == "question":
        counted = int(status == "counted")
        db.execute(
            "UPDATE questions SET leased = leased - 1, counted = counted + ? WHERE position = ?",
            (counted, row["question"]),
        )
    db.execute(
        "INSERT INTO votes (vote_id, question, annotator, kind, repeat_of, outcome, ratings, comment, swapped, seconds,"
        " at, status) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            assignment_id, row["question"], annotator, row["kind"], row["repeat_of"],
            _ORDERED.get((choice, swapped), choice),
            json.dumps({name: -value if swapped else value for name, value in ratings.items()}, sort_keys=True),
            comment, swapped, seconds, now, status,
        ),
    )  # fmt: skip
    record(db, now, annotator, "vote", {"vote": assignment_id, "status": status})
    if status in ("check", "too_fast"):
        _measure(db, annotator, rules, now)
    return read_votes(db, "v.vote_id = ?", (assignment_id,))[0]


def undo(db: sqlite3.Connection, annotator: str, rules: Rules, now: float) -> Assignment:
    """Take back the annotator's last vote and give the question again; see `AnnotationStore.undo`."""
    leases.expire_leases(db, now)
    last = db.execute(
        "SELECT * FROM votes WHERE annotator = ? AND status != 'superseded' ORDER BY number DESC LIMIT 1", (annotator,)
    ).fetchone()
    if last is None:
        raise NotUndoable("there is no vote of yours to undo")
    position = last["question"]
    if last["kind"] == "question":
        free = (
            int(last["status"] == "counted")
            + db.execute(
                "SELECT CASE WHEN used_at IS NULL THEN free ELSE -1 END FROM questions WHERE position = ?", (position,)
            ).fetchone()[0]
        )
        if free < 1:
            raise NotUndoable("your last vote cannot be undone any more: the run has used it, or others have answered")
    leases.end_lease_of(db, annotator)
    db.execute("UPDATE votes SET status = 'superseded' WHERE number = ?", (last["number"],))
    db.execute("UPDATE assignments SET state = 'undone' WHERE assignment_id = ?", (last["vote_id"],))
    if last["status"] == "counted":
        db.execute("UPDATE questions SET counted = counted - 1 WHERE position = ?", (position,))
    leases.reopen(db, position)
    record(db, now, annotator, "undo", {"vote": last["vote_id"]})
    return leases.grant(
        db, annotator, position, last["kind"], rules, now, repeat_of=last["repeat_of"], seconds_before=last["seconds"]
    )


def exclude(db: sqlite3.Connection, annotator: str, reason: str, by: str, now: float) -> None:
    """Stop counting somebody's votes, other than those that the run has used, and give the questions to others."""
    leases.end_lease_of(db, annotator)
    rows = db.execute(
        "SELECT v.number, v.question FROM votes AS v JOIN questions AS q ON v.question = q.position"
        " WHERE v.annotator = ? AND v.status = 'counted' AND q.used_at IS NULL",
        (annotator,),
    ).fetchall()
    db.executemany("UPDATE votes SET status = 'excluded' WHERE number = ?", [(r["number"],) for r in rows])
    db.executemany("UPDATE questions SET counted = counted - 1 WHERE position = ?", [(r["question"],) for r in rows])
    if rows:
        leases.reopen(db, min(r["question"] for r in rows))
    db.execute("UPDATE annotators SET excluded = ?, excluded_at = ? WHERE annotator = ?", (reason, now, annotator))
    record(db, now, by, "excluded", {"annotator": annotator, "reason": reason, "num_votes": len(rows)})


def reinstate(db: sqlite3.Connection, annotator: str, by: str, now: float) -> int:
    """Count somebody's votes again, where others have not answered meanwhile; checks begin anew.

    Returns:
        How many votes count again.
    """
    rows = db.execute(
        "SELECT v.number, v.question FROM votes AS v JOIN questions AS q ON v.question = q.position"
        " WHERE v.annotator = ? AND v.status = 'excluded' AND q.used_at IS NULL AND q.free > 0",
        (annotator,),
    ).fetchall()
    db.executemany("UPDATE votes SET status = 'counted' WHERE number = ?", [(r["number"],) for r in rows])
    db.executemany("UPDATE questions SET counted = counted + 1 WHERE position = ?", [(r["question"],) for r in rows])
    db.execute(
        "UPDATE annotators SET excluded = NULL, excluded_at = NULL, checks_since = ? WHERE annotator = ?",
        (now, annotator),
    )
    record(db, now, by, "reinstated", {"annotator": annotator, "num_votes": len(rows)})
    return len(rows)


def read_votes(db: sqlite3.Connection, condition: str = "1", values: Sequence[object] = ()) -> list[Vote]:
    """The votes `v` (of questions `q`) that a condition holds for, oldest first."""
    rows = db.execute(
        "SELECT v.*, q.question_id FROM votes AS v JOIN questions AS q ON v.question = q.position"
        f" WHERE {condition} ORDER BY v.number",
        values,
    )
    return [
        Vote(
            vote_id=r["vote_id"], question_id=r["question_id"], annotator=r["annotator"], outcome=r["outcome"],
            ratings=json.loads(r["ratings"]), comment=r["comment"], swapped=bool(r["swapped"]), seconds=r["seconds"],
            at=r["at"], kind=r["kind"], repeat_of=r["repeat_of"], status=r["status"],
        )
        for r in rows
    ]  # fmt: skip


def counted_votes(db: sqlite3.Connection, question_ids: Iterable[str]) -> dict[str, tuple[Vote, ...]]:
    """The counted votes of each of these questions, oldest first."""
    wanted = list(question_ids)
    found: dict[str, list[Vote]] = {question_id: [] for question_id in wanted}
    condition = "v.status = 'counted' AND q.question_id IN (SELECT value FROM json_each(?))"
    for given in read_votes(db, condition, (json.dumps(wanted),)):
        found[given.question_id].append(given)
    return {question_id: tuple(votes) for question_id, votes in found.items()}


def standing_of(db: sqlite3.Connection, annotator: str) -> Standing:
    """What the hidden questions and the clock say of somebody, since the last reinstatement if there was one."""
    row = db.execute(
        "SELECT"
        " coalesce(sum(v.kind = 'gold' AND v.status = 'check'), 0) AS num_gold,"
        " coalesce(sum(v.kind = 'gold' AND v.status = 'check' AND v.outcome = q.answer), 0) AS num_gold_right,"
        " coalesce(sum(v.kind = 'repeat' AND v.status = 'check'), 0) AS num_repeats,"
        " coalesce(sum(v.kind = 'repeat' AND v.status = 'check' AND v.outcome = e.outcome), 0) AS num_repeats_same,"
        " coalesce(sum(v.status NOT IN ('superseded', 'skipped')), 0) AS num_timed,"
        " coalesce(sum(v.status = 'too_fast'), 0) AS num_too_fast"
        " FROM votes AS v JOIN questions AS q ON v.question = q.position"
        " LEFT JOIN votes AS e ON v.repeat_of = e.vote_id"
        " JOIN annotators AS p ON v.annotator = p.annotator"
        " WHERE v.annotator = ? AND v.at >= p.checks_since",
        (annotator,),
    ).fetchone()
    return Standing(**{name: row[name] for name in row.keys()})  # noqa: SIM118  # a Row iterates over its values


def _measure(db: sqlite3.Connection, annotator: str, rules: Rules, now: float) -> None:
    reason = shortfall(standing_of(db, annotator), rules)
    if reason is not None:
        exclude(db, annotator, reason, RUN, now)


def _check(choice: str, ratings: Mapping[str, int], comment: str, seconds: float | None, rules: Rules) -> None:
    if choice not in CHOICES:
        raise ValueError(f"a choice is one of {', '.join(CHOICES)}, not {choice!r}")
    unknown = sorted(set(ratings) - set(rules.criteria))
    if unknown:
        raise ValueError(
            f"ratings for {', '.join(unknown)}, but the criteria are {', '.join(rules.criteria) or 'none'}"
        )
    if any(type(value) is not int or abs(value) > MAX_RATING for value in ratings.values()):
        raise ValueError(f"a rating is a whole number from -{MAX_RATING} to {MAX_RATING}, not one of {ratings}")
    if len(comment) > MAX_COMMENT:
        raise ValueError(f"a comment has at most {MAX_COMMENT} characters, not {len(comment)}")
    if seconds is not None and not (math.isfinite(seconds) and seconds >= 0.0):
        raise ValueError(f"seconds are a number from 0, not {seconds}")
