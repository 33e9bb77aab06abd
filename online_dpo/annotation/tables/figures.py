"""What the store tells of itself: where the questions stand, and how people work."""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Iterable, Mapping
from statistics import median

from online_dpo.annotation.records import AnnotatorFigures, Outlook, Progress, Snapshot, Stuck
from online_dpo.annotation.tables import accounts, settings
from online_dpo.annotation.tables.leases import question_of
from online_dpo.annotation.tables.voting import read_votes


def progress(
    db: sqlite3.Connection, paused: bool, now: float, *, purpose: str | None, round_index: int | None
) -> Progress:
    """See `AnnotationStore.progress`."""
    scope = {"purpose": purpose, "round_index": round_index}
    row = db.execute(
        "SELECT count(*) AS num_questions, coalesce(sum(counted >= wanted), 0) AS num_settled,"
        " coalesce(sum(used_at IS NOT NULL), 0) AS num_used, coalesce(sum(counted), 0) AS num_votes,"
        f" coalesce(sum(wanted - counted), 0) AS num_missing FROM questions AS q WHERE {_SCOPE}",
        scope,
    ).fetchone()
    (num_leased,) = db.execute(
        "SELECT count(DISTINCT a.question) FROM assignments AS a JOIN questions AS q ON a.question = q.position"
        f" WHERE a.state = 'open' AND a.kind = 'question' AND a.expires_at > :now AND {_SCOPE}",
        {**scope, "now": now},
    ).fetchone()
    active = [p.annotator for p in accounts.read_annotators(db) if p.status == "active" and p.role == "annotator"]
    return Progress(
        **{name: row[name] for name in row.keys()},  # noqa: SIM118  # a Row iterates over its values
        num_leased=num_leased,
        num_people=len(active),
        stuck=tuple(_stuck(db, active, scope)),
        paused=paused,
    )


_SCOPE = (
    "q.answer IS NULL AND q.withdrawn_at IS NULL AND (:purpose IS NULL OR q.purpose = :purpose)"
    " AND (:round_index IS NULL OR q.round_index = :round_index)"
)


def _stuck(db: sqlite3.Connection, active: list[str], scope: Mapping[str, object]) -> Iterable[Stuck]:
    """Questions for which more votes are wanted than people are left, in the order of the queue."""
    rows = db.execute(
        "WITH answered AS ("
        " SELECT v.question, sum(v.annotator IN (SELECT value FROM json_each(:active))) AS num_answered,"
        "  sum(v.status = 'skipped') AS num_skipped"
        " FROM votes AS v JOIN questions AS q ON v.question = q.position"
        " WHERE v.kind = 'question' AND v.status != 'superseded' AND q.wanted > q.counted GROUP BY v.question)"
        " SELECT q.question_id, q.wanted - q.counted AS num_missing,"
        "  :num_active - coalesce(a.num_answered, 0) AS num_people, coalesce(a.num_skipped, 0) AS num_skipped"
        " FROM questions AS q LEFT JOIN answered AS a ON a.question = q.position"
        f" WHERE q.wanted > q.counted AND {_SCOPE} AND q.wanted - q.counted > :num_active - coalesce(a.num_answered, 0)"
        " ORDER BY q.position",
        {**scope, "active": json.dumps(active), "num_active": len(active)},
    )
    for row in rows:
        yield Stuck(**{name: row[name] for name in row.keys()})  # noqa: SIM118


def snapshot(db: sqlite3.Connection) -> Snapshot:
    """See `AnnotationStore.snapshot`."""
    rows = db.execute("SELECT *, wanted > counted AS is_unsettled FROM questions ORDER BY position").fetchall()
    return Snapshot(
        questions={row["question_id"]: question_of(row) for row in rows},
        unsettled=frozenset(row["question_id"] for row in rows if row["is_unsettled"]),
        gold={row["question_id"]: row["answer"] for row in rows if row["answer"] is not None},
        votes=tuple(read_votes(db)),
        rules=settings.rules(db),
    )


def outlook(db: sqlite3.Connection, annotator: str) -> Outlook:
    """What lies behind and before an annotator."""
    rows = db.execute(
        "SELECT seconds FROM votes WHERE annotator = ? AND status != 'superseded' ORDER BY number DESC", (annotator,)
    ).fetchall()
    missing, open_to_all = db.execute(
        "SELECT coalesce(sum(wanted - counted), 0), count(*) FROM questions WHERE wanted > counted"
    ).fetchone()
    (answered,) = db.execute(
        "SELECT count(*) FROM assignments AS a JOIN questions AS q ON a.question = q.position"
        " WHERE a.annotator = ? AND a.state = 'voted' AND a.kind = 'question' AND q.wanted > q.counted",
        (annotator,),
    ).fetchone()
    num_people = sum(p.status == "active" and p.role == "annotator" for p in accounts.read_annotators(db))
    num_left = min(open_to_all - answered, math.ceil(missing / max(num_people, 1)))
    seconds = [row["seconds"] for row in rows[:RECENT]]
    return Outlook(num_done=len(rows), num_left=num_left, seconds_left=num_left * median(seconds) if seconds else None)


RECENT = 50
"""As many of the latest votes tell how fast somebody is."""


def annotator_figures(db: sqlite3.Connection) -> list[AnnotatorFigures]:
    """How everybody works, in the order of the invitations."""
    rows = db.execute(
        "SELECT v.annotator, count(*) AS num_votes, sum(v.status = 'counted') AS num_counted,"
        " sum(v.status = 'skipped') AS num_skipped, sum(v.status = 'too_fast') AS num_too_fast,"
        " sum(v.kind = 'gold' AND v.status = 'check') AS num_gold,"
        " sum(v.kind = 'gold' AND v.status = 'check' AND v.outcome = q.answer) AS num_gold_right,"
        " sum(v.kind = 'repeat' AND v.status = 'check') AS num_repeats,"
        " coalesce(sum(v.kind = 'repeat' AND v.status = 'check' AND v.outcome = e.outcome), 0) AS num_repeats_same,"
        " sum(v.outcome IN ('first', 'second')) AS num_sided,"
        " sum(v.outcome = CASE WHEN v.swapped THEN 'second' ELSE 'first' END) AS num_shown_first,"
        " max(v.at) AS last_at"
        " FROM votes AS v JOIN questions AS q ON v.question = q.position"
        " LEFT JOIN votes AS e ON v.repeat_of = e.vote_id"
        " WHERE v.status != 'superseded' GROUP BY v.annotator"
    ).fetchall()
    sums = {row["annotator"]: {name: row[name] for name in row.keys() if name != "annotator"} for row in rows}  # noqa: SIM118
    seconds: dict[str, list[float]] = {}
    for row in db.execute("SELECT annotator, seconds FROM votes WHERE status NOT IN ('superseded', 'skipped')"):
        seconds.setdefault(row["annotator"], []).append(row["seconds"])
    nothing = dict.fromkeys(
        AnnotatorFigures.__dataclass_fields__.keys() - {"annotator", "median_seconds", "last_at"}, 0
    )
    return [
        AnnotatorFigures(
            annotator=person,
            median_seconds=median(seconds[person.annotator]) if person.annotator in seconds else None,
            **{"last_at": None, **nothing, **sums.get(person.annotator, {})},
        )
        for person in accounts.read_annotators(db)
    ]
