"""Who is given which question: the fair order, hidden gold questions and repeats."""

from __future__ import annotations

import sqlite3

from online_dpo.annotation.records import Assignment, Rules
from online_dpo.annotation.tables import leases
from online_dpo.types import derive_seed


def next_assignment(db: sqlite3.Connection, annotator: str, rules: Rules, now: float) -> Assignment | None:
    """The assignment that the annotator holds, with its lease renewed, or else a new one; None = nothing to do."""
    leases.expire_leases(db, now)
    held = db.execute("SELECT * FROM assignments WHERE annotator = ? AND state = 'open'", (annotator,)).fetchone()
    if held:
        db.execute("UPDATE assignments SET expires_at = ? WHERE number = ?", (now + rules.lease_s, held["number"]))
        return leases.read_assignment(db, held["assignment_id"])
    position = _pick(db, annotator)
    if position is None:
        return None
    kind, repeat_of = "question", None
    # Hidden questions come only where there is something to do, else somebody would be given nothing but these.
    draw = _draw(rules, annotator, db)
    if draw < rules.gold_share:
        gold = _pick_gold(db, annotator, rules)
        kind, position = ("gold", gold) if gold is not None else (kind, position)
    elif draw < rules.gold_share + rules.repeat_share:
        earlier = _pick_repeat(db, annotator, rules)
        kind, position, repeat_of = ("repeat", *earlier) if earlier else (kind, position, repeat_of)
    return leases.grant(db, annotator, position, kind, rules, now, repeat_of=repeat_of)


_NOT_SEEN = (
    "NOT EXISTS (SELECT 1 FROM assignments AS a WHERE a.annotator = :annotator AND a.question = q.position"
    " AND a.state IN ('open', 'voted') AND a.kind = :kind)"
)


def _pick(db: sqlite3.Connection, annotator: str) -> int | None:
    """The free question that is nearest to being settled, of these the first in the queue, that the annotator may have.

    What somebody has answered and others have not would be looked at again for every question. So each annotator has a
    frontier: whatever lies before it is settled, or answered by this person.
    """
    (frontier,) = db.execute("SELECT frontier FROM annotators WHERE annotator = ?", (annotator,)).fetchone()
    at = {"annotator": annotator, "frontier": frontier, "kind": "question"}
    query = (
        "SELECT q.position FROM questions AS q WHERE q.wanted > q.counted AND q.position >= :frontier {and_free} AND "
        f"{_NOT_SEEN} ORDER BY q.position LIMIT 1"
    )
    # Free or not, this is the first question that may be given to the annotator now or later.
    new = db.execute(query.format(and_free=""), at).fetchone()
    if new is None:
        return None
    if new[0] > frontier:
        at["frontier"] = new[0]
        db.execute("UPDATE annotators SET frontier = :frontier WHERE annotator = :annotator", at)
    most = db.execute("SELECT max(free) FROM questions WHERE wanted > counted").fetchone()[0]
    for free in range(1, most + 1):
        found = db.execute(query.format(and_free="AND q.free = :free"), {**at, "free": free}).fetchone()
        if found:
            return int(found[0])
    return None


def _draw(rules: Rules, annotator: str, db: sqlite3.Connection) -> float:
    """A number in [0, 1) that the seed and the number of the annotator's assignments so far decide."""
    (number,) = db.execute("SELECT count(*) FROM assignments WHERE annotator = ?", (annotator,)).fetchone()
    return derive_seed(rules.seed, "hidden", annotator, number) / (1 << 63)


def _pick_gold(db: sqlite3.Connection, annotator: str, rules: Rules) -> int | None:
    """A gold question that the annotator has not had, by seed in another order for each; None = all are answered."""
    rows = db.execute(
        f"SELECT q.position FROM questions AS q WHERE q.answer IS NOT NULL AND {_NOT_SEEN}",
        {"annotator": annotator, "kind": "gold"},
    ).fetchall()
    return min((r[0] for r in rows), key=lambda p: derive_seed(rules.seed, "gold", annotator, p), default=None)


def _pick_repeat(db: sqlite3.Connection, annotator: str, rules: Rules) -> tuple[int, str] | None:
    """Question and vote to repeat: the newest with an opinion that lies `repeat_distance` own votes back."""
    found = db.execute(
        "SELECT v.question, v.vote_id FROM votes AS v WHERE v.annotator = :annotator AND v.kind = 'question'"
        " AND v.status IN ('counted', 'excluded') AND v.number <= (SELECT number FROM votes"
        "   WHERE annotator = :annotator AND status != 'superseded' ORDER BY number DESC LIMIT 1 OFFSET :distance)"
        " AND NOT EXISTS (SELECT 1 FROM assignments AS a WHERE a.annotator = :annotator AND a.question = v.question"
        "   AND a.state IN ('open', 'voted') AND a.kind = 'repeat')"
        " ORDER BY v.number DESC LIMIT 1",
        {"annotator": annotator, "distance": rules.repeat_distance},
    ).fetchone()
    return (found[0], found[1]) if found else None
