"""The rules, and whether the annotation is paused."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import fields
from typing import Any

from online_dpo.annotation.records import Rules


def read(db: sqlite3.Connection, name: str) -> str:
    """A setting; empty where it was never set."""
    row = db.execute("SELECT value FROM settings WHERE name = ?", (name,)).fetchone()
    return row["value"] if row else ""


def write(db: sqlite3.Connection, name: str, value: str) -> None:
    """Set it."""
    db.execute("INSERT INTO settings VALUES (?, ?) ON CONFLICT DO UPDATE SET value = excluded.value", (name, value))


def rules(db: sqlite3.Connection) -> Rules:
    """How people are asked at the moment."""
    found: dict[str, Any] = json.loads(read(db, "rules"))
    known = {name: found[name] for name in (f.name for f in fields(Rules)) if name in found}
    return Rules(**{**known, "criteria": tuple(found["criteria"])})
