"""Who may sign in: invitations and sessions by random tokens, of which only hashes are kept."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import sqlite3

from online_dpo.annotation.records import Annotator, Excluded, Invitation, Refused, Role, SignInRefused
from online_dpo.annotation.tables import leases
from online_dpo.annotation.tables.events import record

TOKEN_BYTES = 32
MAX_NAME = 200

_STATUS = (
    "CASE WHEN p.revoked_at IS NOT NULL THEN 'revoked' WHEN p.excluded IS NOT NULL THEN 'excluded' ELSE 'active' END"
)


def invite(
    db: sqlite3.Connection, name: str, role: Role, expires_at: float, seed: int, by: str, now: float
) -> Invitation:
    """Make a person with an invitation."""
    name = name.strip()
    if not name or len(name) > MAX_NAME:
        raise Refused(f"a person's name has 1 to {MAX_NAME} characters, this one has {len(name)}")
    (number,) = db.execute("SELECT count(*) FROM annotators").fetchone()
    pseudonym = _pseudonym(db, seed, number)
    db.execute(
        "INSERT INTO annotators (annotator, name, role, created_at) VALUES (?, ?, ?, ?)", (pseudonym, name, role, now)
    )
    record(db, now, by, "invited", {"annotator": pseudonym, "role": role, "expires_at": expires_at})
    return _add_invitation(db, pseudonym, expires_at, now)


def invite_again(db: sqlite3.Connection, annotator: str, expires_at: float, by: str, now: float) -> Invitation:
    """A new link for somebody whose link was lost, has run out or was revoked; older links and sessions end."""
    read_annotator(db, annotator)
    revoke(db, annotator, by, now)
    db.execute("UPDATE annotators SET revoked_at = NULL WHERE annotator = ?", (annotator,))
    record(db, now, by, "invited again", {"annotator": annotator, "expires_at": expires_at})
    return _add_invitation(db, annotator, expires_at, now)


def sign_in(db: sqlite3.Connection, token: str, now: float) -> Annotator:
    """The person whom a link belongs to. A link may be used until it runs out or is revoked."""
    row = _by_token(db, "invitations", token)
    if row is None:
        raise SignInRefused("this link is not known: ask for a new one")
    if row["revoked_at"] is not None:
        raise SignInRefused("this link was revoked: ask for a new one")
    if row["expires_at"] <= now:
        raise SignInRefused("this link has run out: ask for a new one")
    record(db, now, row["annotator"], "signed in")
    return read_annotator(db, row["annotator"])


def open_session(db: sqlite3.Connection, annotator: str, expires_at: float, now: float) -> str:
    """A token that stands for somebody who has signed in, to be kept in a cookie."""
    token = secrets.token_urlsafe(TOKEN_BYTES)
    db.execute(
        "INSERT INTO sessions (token_hash, annotator, created_at, expires_at) VALUES (?, ?, ?, ?)",
        (_hash(token), annotator, now, expires_at),
    )
    return token


def find_session(db: sqlite3.Connection, token: str, now: float) -> Annotator | None:
    """Whose session it is; None where there is none, or none any more."""
    row = _by_token(db, "sessions", token)
    if row is None or row["revoked_at"] is not None or row["expires_at"] <= now:
        return None
    return read_annotator(db, row["annotator"])


def close_session(db: sqlite3.Connection, token: str, now: float) -> None:
    """Sign out."""
    row = _by_token(db, "sessions", token)
    if row is not None and row["revoked_at"] is None:
        db.execute("UPDATE sessions SET revoked_at = ? WHERE token_hash = ?", (now, row["token_hash"]))
        record(db, now, row["annotator"], "signed out")


def revoke(db: sqlite3.Connection, annotator: str, by: str, now: float) -> None:
    """End somebody's links and sessions, and give back what they hold. Their votes stay as they are."""
    read_annotator(db, annotator)
    leases.end_lease_of(db, annotator)
    for table in ("invitations", "sessions"):
        db.execute(f"UPDATE {table} SET revoked_at = ? WHERE annotator = ? AND revoked_at IS NULL", (now, annotator))
    db.execute("UPDATE annotators SET revoked_at = ? WHERE annotator = ?", (now, annotator))
    record(db, now, by, "revoked", {"annotator": annotator})


def read_annotator(db: sqlite3.Connection, annotator: str) -> Annotator:
    """The person with a pseudonym.

    Raises:
        Refused: there is none.
    """
    row = db.execute(f"SELECT *, {_STATUS} AS status FROM annotators AS p WHERE annotator = ?", (annotator,)).fetchone()
    if row is None:
        raise Refused(f"there is no annotator {annotator}")
    return _annotator(row)


def read_annotators(db: sqlite3.Connection) -> list[Annotator]:
    """Everybody who was ever invited, in the order of the invitations."""
    rows = db.execute(f"SELECT *, {_STATUS} AS status FROM annotators AS p ORDER BY p.number")
    return [_annotator(row) for row in rows]


def require_active(db: sqlite3.Connection, annotator: str) -> None:
    """Refuse whoever may not answer.

    Raises:
        Excluded: the annotator is below the bar; the message is for this person.
        SignInRefused: access was revoked.
        Refused: there is no such annotator.
    """
    found = read_annotator(db, annotator)
    if found.status == "revoked":
        raise SignInRefused("your access was revoked: ask whoever invited you")
    if found.status == "excluded":
        raise Excluded(
            f"your votes do not count any more, and you are given no further questions: {found.reason}. "
            f"Ask whoever invited you if you think this is wrong"
        )


def _annotator(row: sqlite3.Row) -> Annotator:
    return Annotator(
        annotator=row["annotator"], name=row["name"], role=row["role"], status=row["status"], reason=row["excluded"]
    )


def _add_invitation(db: sqlite3.Connection, annotator: str, expires_at: float, now: float) -> Invitation:
    token = secrets.token_urlsafe(TOKEN_BYTES)
    db.execute(
        "INSERT INTO invitations (token_hash, annotator, created_at, expires_at) VALUES (?, ?, ?, ?)",
        (_hash(token), annotator, now, expires_at),
    )
    return Invitation(token=token, annotator=read_annotator(db, annotator), expires_at=expires_at)


def _pseudonym(db: sqlite3.Connection, seed: int, number: int) -> str:
    """`annotator-` and four hexadecimal digits (more, where they are taken) that seed and number decide."""
    digits = hashlib.sha256(f"{seed} annotator {number}".encode()).hexdigest()
    for length in range(4, len(digits)):
        name = f"annotator-{digits[:length]}"
        if not db.execute("SELECT 1 FROM annotators WHERE annotator = ?", (name,)).fetchone():
            return name
    raise AssertionError("no pseudonym is free")


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode(errors="surrogatepass")).hexdigest()


def _by_token(db: sqlite3.Connection, table: str, token: str) -> sqlite3.Row | None:
    """The row of a token: found by one half of its hash, compared by all of it in constant time."""
    digest = _hash(token)
    rows = db.execute(
        f"SELECT * FROM {table} WHERE token_hash >= ? AND token_hash <= ?", (digest[:32], digest[:32] + "g")
    ).fetchall()
    return next((row for row in rows if hmac.compare_digest(row["token_hash"], digest)), None)
