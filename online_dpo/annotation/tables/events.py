"""The audit: who did what, and when."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from typing import Any

from online_dpo.annotation.records import Event

RUN = "run"
"""Who does what no person does."""


def record(db: sqlite3.Connection, at: float, who: str, what: str, details: Mapping[str, Any] | None = None) -> None:
    """Add an entry, in the transaction of what it tells of."""
    text = json.dumps(details or {}, sort_keys=True)
    db.execute("INSERT INTO events (at, who, what, details) VALUES (?, ?, ?, ?)", (at, who, what, text))


def read_events(db: sqlite3.Connection, *, after: int = 0, limit: int = 1000) -> list[Event]:
    """Entries with a higher number than `after`, oldest first."""
    rows = db.execute("SELECT * FROM events WHERE number > ? ORDER BY number LIMIT ?", (after, limit))
    return [
        Event(number=r["number"], at=r["at"], who=r["who"], what=r["what"], details=json.loads(r["details"]))
        for r in rows
    ]
