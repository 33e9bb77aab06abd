"""Questions: adding, reading, closing, and marking those whose votes the run has used."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Sequence

from online_dpo.annotation.records import GoldQuestion, Question, Rules
from online_dpo.annotation.tables.events import RUN, record
from online_dpo.annotation.tables.leases import end_lease, question_of, reopen
from online_dpo.types import derive_seed

_AMONG = "IN (SELECT value FROM json_each(?))"


def add_questions(db: sqlite3.Connection, questions: Sequence[Question], rules: Rules, now: float) -> int:
    """Put questions at the end of the queue, in an order that depends on the seed.

    Known ones stay where they are. Of these, what was withdrawn is asked again, and what is not settled wants as many
    votes as the rules say now.

    Returns:
        How many were new.
    """
    position = _next_position(db)
    num_new = 0
    for question in sorted(questions, key=lambda q: derive_seed(rules.seed, "order", q.question_id)):
        num_new += _insert(db, question, None, rules.votes_per_question, position + num_new, now)
    if num_new:
        record(db, now, RUN, "questions added", {"num_questions": num_new, "purpose": questions[0].purpose})
    ids = json.dumps([question.question_id for question in questions])
    (first_back,) = db.execute(
        f"SELECT min(position) FROM questions WHERE withdrawn_at IS NOT NULL AND question_id {_AMONG}", (ids,)
    ).fetchone()
    if first_back is not None:
        reopen(db, first_back)
    db.execute(
        "UPDATE questions SET wanted = max(counted + leased, ?), withdrawn_at = NULL WHERE used_at IS NULL"
        f" AND (withdrawn_at IS NOT NULL OR wanted > counted) AND question_id {_AMONG}",
        (rules.votes_per_question, ids),
    )
    return num_new


def add_gold(db: sqlite3.Connection, questions: Sequence[GoldQuestion], now: float) -> int:
    """Put hidden questions into the store; known ones stay as they are. Returns how many were new."""
    position = _next_position(db)
    num_new = 0
    for gold in questions:
        num_new += _insert(db, gold.question, gold.answer, 0, position + num_new, now)
    if num_new:
        record(db, now, RUN, "gold questions added", {"num_questions": num_new})
    return num_new


def _next_position(db: sqlite3.Connection) -> int:
    return int(db.execute("SELECT coalesce(max(position), -1) + 1 FROM questions").fetchone()[0])


def _insert(db: sqlite3.Connection, q: Question, answer: str | None, wanted: int, position: int, now: float) -> int:
    return db.execute(
        "INSERT OR IGNORE INTO questions (position, question_id, purpose, round_index, prompt_id, first, second,"
        " answer, wanted, added_at, prompt, first_text, second_text) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            position, q.question_id, q.purpose, q.round_index, q.prompt_id, q.first, q.second, answer,
            wanted, now, json.dumps(q.prompt), q.first_text, q.second_text,
        ),
    ).rowcount  # fmt: skip


def read_questions(db: sqlite3.Connection, question_ids: Iterable[str] | None) -> list[Question]:
    """Questions by their ids, or all but the gold ones, in the order of the queue."""
    condition, values = "answer IS NULL", []
    if question_ids is not None:
        condition, values = f"question_id {_AMONG}", [json.dumps(list(question_ids))]
    return [
        question_of(row) for row in db.execute(f"SELECT * FROM questions WHERE {condition} ORDER BY position", values)
    ]


def num_missing(db: sqlite3.Connection, question_ids: Iterable[str]) -> int:
    """Votes that these questions still want.

    Raises:
        ValueError: one of them is not in the store.
    """
    ids = set(question_ids)
    num_known, missing = db.execute(
        f"SELECT count(*), coalesce(sum(wanted - counted), 0) FROM questions WHERE question_id {_AMONG}",
        (json.dumps(sorted(ids)),),
    ).fetchone()
    if num_known != len(ids):
        raise ValueError(f"{len(ids) - num_known} of {len(ids)} questions are not in the store")
    return int(missing)


def use(db: sqlite3.Connection, question_ids: Sequence[str], now: float) -> None:
    """Mark settled questions as used by the run: their votes never change any more."""
    num_new = db.execute(
        f"UPDATE questions SET used_at = ? WHERE used_at IS NULL AND question_id {_AMONG}",
        (now, json.dumps(list(question_ids))),
    ).rowcount
    if num_new:
        record(db, now, RUN, "answers used", {"num_questions": num_new})


def withdraw_others(db: sqlite3.Connection, question_ids: Iterable[str], up_to_round: int, now: float) -> int:
    """Ask nobody what the run needs no more; see `AnnotationStore.withdraw_others`."""
    kept = set(question_ids)
    rows = db.execute(
        "SELECT question_id FROM questions WHERE answer IS NULL AND wanted > counted AND round_index <= ?",
        (up_to_round,),
    ).fetchall()
    others = [row["question_id"] for row in rows if row["question_id"] not in kept]
    if others:
        _want_no_more(db, json.dumps(others))
        db.execute(f"UPDATE questions SET withdrawn_at = ? WHERE question_id {_AMONG}", (now, json.dumps(others)))
        record(db, now, RUN, "questions withdrawn", {"num_questions": len(others)})
    return len(others)


def close_questions(db: sqlite3.Connection, question_ids: Iterable[str], by: str, now: float) -> int:
    """Want no more votes than there are."""
    closed = _want_no_more(db, json.dumps(list(question_ids)))
    for row in closed:
        record(db, now, by, "question closed", {name: row[name] for name in ("question_id", "wanted", "counted")})
    return len(closed)


def _want_no_more(db: sqlite3.Connection, ids: str) -> list[sqlite3.Row]:
    """Give questions to nobody any more; those that were unsettled, as they were. `ids` is a JSON list."""
    held = db.execute(
        "SELECT a.* FROM assignments AS a JOIN questions AS q ON a.question = q.position"
        f" WHERE a.state = 'open' AND a.kind = 'question' AND q.wanted > q.counted AND q.question_id {_AMONG}",
        (ids,),
    ).fetchall()
    for row in held:
        end_lease(db, row, "released")
    unsettled = db.execute(
        f"SELECT question_id, wanted, counted FROM questions WHERE wanted > counted AND question_id {_AMONG}", (ids,)
    ).fetchall()
    db.execute(f"UPDATE questions SET wanted = counted WHERE wanted > counted AND question_id {_AMONG}", (ids,))
    return unsettled
