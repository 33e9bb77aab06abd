"""Stores of votes with people in them, and what must hold of every store."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

from online_dpo.annotation.records import GoldQuestion, Question, Rules
from online_dpo.annotation.store import AnnotationStore

T0 = 1_800_000_000.0
PLAIN = {"gold_share": 0.0, "repeat_share": 0.0, "min_seconds": 0.0}


def ask(number: int, purpose: str = "reward", round_index: int = 0) -> Question:
    return Question(
        purpose=purpose, round_index=round_index, prompt_id=f"p{number}", prompt=f"Prompt {number}", first=0, second=1,
        first_text=f"first of {number}", second_text=f"second of {number}",
    )  # fmt: skip


def gold(number: int) -> GoldQuestion:
    return GoldQuestion(
        prompt=f"Gold {number}", first_text=f"good {number}", second_text=f"bad {number}", answer="first"
    )


def make_store(path: Path, *, num_questions: int = 0, num_gold: int = 0, **rules: Any) -> AnnotationStore:
    store = AnnotationStore.create(path, Rules(**{**PLAIN, **rules}), T0)
    store.add_questions([ask(i) for i in range(num_questions)], T0)
    store.add_gold([gold(i) for i in range(num_gold)], T0)
    return store


def invite(store: AnnotationStore, count: int) -> list[str]:
    return [
        store.invite(f"Person {i}", expires_at=T0 + 1e6, now=T0).annotator.annotator for i in range(count)
    ]  # fmt: skip


def check_file(path: Path) -> None:
    """What holds of every state of the file, whoever was killed when."""
    db = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert db.execute("PRAGMA foreign_key_check").fetchall() == []
        wrong = db.execute(
            "SELECT q.position FROM questions AS q WHERE"
            " q.counted != (SELECT count(*) FROM votes AS v WHERE v.question = q.position AND v.status = 'counted') OR"
            " q.leased != (SELECT count(*) FROM assignments AS a WHERE a.question = q.position AND a.state = 'open'"
            "   AND a.kind = 'question') OR q.counted + q.leased > q.wanted"
        ).fetchall()
        assert wrong == []
        # An assignment has a vote exactly if it was voted on, by the same person and of the same question.
        strays = db.execute(
            "SELECT a.assignment_id FROM assignments AS a LEFT JOIN votes AS v ON v.vote_id = a.assignment_id WHERE"
            " (a.state IN ('voted', 'undone')) != (v.vote_id IS NOT NULL) OR (a.state = 'undone') !="
            " (coalesce(v.status, '') = 'superseded') OR v.annotator != a.annotator OR v.question != a.question"
        ).fetchall()
        assert strays == []
        twice = db.execute(
            "SELECT 1 FROM votes WHERE kind = 'question' AND status != 'superseded' GROUP BY question, annotator"
            " HAVING count(*) > 1"
        ).fetchall()
        assert twice == []
        # Nothing happens without an entry in the audit.
        (num_votes,) = db.execute("SELECT count(*) FROM votes").fetchone()
        (num_told,) = db.execute("SELECT count(*) FROM events WHERE what = 'vote'").fetchone()
        assert num_votes == num_told
    finally:
        db.close()
