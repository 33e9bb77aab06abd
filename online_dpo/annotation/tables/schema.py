"""The tables of the store. Whoever changes them raises `SCHEMA_VERSION`."""

from __future__ import annotations

APPLICATION_ID = 0x0D90A770
"""Marks the file as ours (SQLite's header has a place for it)."""

SCHEMA_VERSION = 1

TABLES = ("settings", "questions", "annotators", "invitations", "sessions", "assignments", "votes", "events")

# `questions.counted` and `leased` are kept in step with votes and assignments by the code in queue.py and voting.py;
# the checks make a mistake there an error instead of a vote too many. A question is given in order of `free`, then of
# `position`. `annotators.frontier`: no question before this position can be given to the annotator.
_STATEMENTS = (
    """CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID""",
    """CREATE TABLE questions (
        position INTEGER PRIMARY KEY,
        question_id TEXT NOT NULL UNIQUE,
        purpose TEXT NOT NULL, round_index INTEGER NOT NULL, prompt_id TEXT NOT NULL,
        first INTEGER NOT NULL, second INTEGER NOT NULL,
        answer TEXT,
        wanted INTEGER NOT NULL,
        counted INTEGER NOT NULL DEFAULT 0 CHECK (counted >= 0),
        leased INTEGER NOT NULL DEFAULT 0 CHECK (leased >= 0),
        free INTEGER GENERATED ALWAYS AS (wanted - counted - leased) VIRTUAL,
        used_at REAL, withdrawn_at REAL, added_at REAL NOT NULL,
        prompt TEXT NOT NULL, first_text TEXT NOT NULL, second_text TEXT NOT NULL,
        CHECK (counted + leased <= wanted)
    )""",
    """CREATE INDEX questions_free ON questions (free, position) WHERE wanted > counted""",
    """CREATE INDEX questions_unsettled ON questions (position, wanted, counted) WHERE wanted > counted""",
    """CREATE INDEX questions_scope ON questions (purpose, round_index, wanted, counted, leased, used_at)""",
    """CREATE INDEX questions_gold ON questions (position) WHERE answer IS NOT NULL""",
    """CREATE TABLE annotators (
        number INTEGER PRIMARY KEY,
        annotator TEXT NOT NULL UNIQUE,
        name TEXT NOT NULL, role TEXT NOT NULL, created_at REAL NOT NULL,
        excluded TEXT, excluded_at REAL, checks_since REAL NOT NULL DEFAULT 0, revoked_at REAL,
        frontier INTEGER NOT NULL DEFAULT 0
    )""",
    """CREATE TABLE invitations (
        token_hash TEXT PRIMARY KEY,
        annotator TEXT NOT NULL REFERENCES annotators (annotator),
        created_at REAL NOT NULL, expires_at REAL NOT NULL, revoked_at REAL
    ) WITHOUT ROWID""",
    """CREATE TABLE sessions (
        token_hash TEXT PRIMARY KEY,
        annotator TEXT NOT NULL REFERENCES annotators (annotator),
        created_at REAL NOT NULL, expires_at REAL NOT NULL, revoked_at REAL
    ) WITHOUT ROWID""",
    """CREATE TABLE assignments (
        number INTEGER PRIMARY KEY,
        assignment_id TEXT NOT NULL UNIQUE,
        question INTEGER NOT NULL REFERENCES questions,
        annotator TEXT NOT NULL REFERENCES annotators (annotator),
        kind TEXT NOT NULL CHECK (kind IN ('question', 'gold', 'repeat')),
        swapped INTEGER NOT NULL, repeat_of TEXT, seconds_before REAL NOT NULL DEFAULT 0,
        granted_at REAL NOT NULL, expires_at REAL NOT NULL,
        state TEXT NOT NULL DEFAULT 'open' CHECK (state IN ('open', 'voted', 'undone', 'released', 'expired'))
    )""",
    """CREATE UNIQUE INDEX assignments_once ON assignments (annotator, question, kind)
        WHERE state IN ('open', 'voted')""",
    """CREATE UNIQUE INDEX assignments_open ON assignments (annotator) WHERE state = 'open'""",
    """CREATE INDEX assignments_expiring ON assignments (expires_at) WHERE state = 'open'""",
    """CREATE INDEX assignments_by_question ON assignments (question, state)""",
    """CREATE INDEX assignments_by_annotator ON assignments (annotator, number)""",
    """CREATE TABLE votes (
        number INTEGER PRIMARY KEY,
        vote_id TEXT NOT NULL UNIQUE REFERENCES assignments (assignment_id),
        question INTEGER NOT NULL REFERENCES questions,
        annotator TEXT NOT NULL REFERENCES annotators (annotator),
        kind TEXT NOT NULL, repeat_of TEXT,
        outcome TEXT NOT NULL CHECK (outcome IN ('first', 'second', 'tie', 'both_bad', 'skip')),
        ratings TEXT NOT NULL, comment TEXT NOT NULL, swapped INTEGER NOT NULL,
        seconds REAL NOT NULL, at REAL NOT NULL,
        status TEXT NOT NULL
            CHECK (status IN ('counted', 'superseded', 'excluded', 'check', 'too_fast', 'skipped'))
    )""",
    """CREATE INDEX votes_by_question ON votes (question, status)""",
    """CREATE INDEX votes_by_annotator ON votes (annotator, number)""",
    """CREATE TABLE events (
        number INTEGER PRIMARY KEY, at REAL NOT NULL, who TEXT NOT NULL, what TEXT NOT NULL, details TEXT NOT NULL
    )""",
    *(
        f"""CREATE TRIGGER {table}_stay BEFORE DELETE ON {table}
            BEGIN SELECT RAISE(ABORT, 'nothing is ever deleted from {table}'); END"""
        for table in TABLES
        if table != "settings"
    ),
    f"PRAGMA application_id = {APPLICATION_ID}",
    f"PRAGMA user_version = {SCHEMA_VERSION}",
)

CREATE = _STATEMENTS
