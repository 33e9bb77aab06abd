"""Connections to the SQLite file: opening, checking, one transaction per change, and errors in plain words."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from online_dpo.annotation.tables.schema import APPLICATION_ID, CREATE, SCHEMA_VERSION
from online_dpo.errors import UserError

BUSY_TIMEOUT_S = 30.0
"""How long a process waits for the other one's transaction, which takes milliseconds."""

NETWORK_FILE_SYSTEMS = ("nfs", "cifs", "smb", "lustre", "ceph", "gpfs", "beegfs", "afs", "fuse.sshfs", "fuse.glusterfs")
"""Where WAL does not work or locks are not kept. Names that begin so, as in `/proc/self/mounts`."""


class AnnotationStoreError(UserError):
    """The file of the store cannot be used; the message names it and says what to do."""


class Database:
    """The file, for many threads. Readers have a connection each; writers take turns on one, in the order they come.

    SQLite's own waiting sleeps ever longer, so some of many waiting threads would wait very long. A lock within the
    process does not.
    """

    def __init__(self, path: Path, *, options: str = "") -> None:
        """Open a file that is there, or a new and empty one.

        Args:
            path: the file; its folder exists.
            options: further options of SQLite's file address, such as `vfs=unix-dotfile`.

        Raises:
            AnnotationStoreError: the file cannot be used.
        """
        self.path = path
        self._options = options
        self._lock = threading.Lock()
        self._idle: list[sqlite3.Connection] = []
        self._closed = False
        file_system = _file_system(path)
        if file_system.startswith(NETWORK_FILE_SYSTEMS):
            raise AnnotationStoreError(
                f"{path} is on a network file system ({file_system}), where votes of two processes could be lost: "
                f"put the run directory on a local disk of the machine on which people are asked"
            )
        # It has people's names. SQLite gives its own files beside it the same rights; where this fails, it says why.
        with suppress(OSError):
            path.touch(mode=0o600)
        with self._explained():
            self._writer = self._connect()

    def create(self) -> bool:
        """Make the tables, if the file is empty. Two processes may do so at once.

        Returns:
            Whether it was.

        Raises:
            AnnotationStoreError: see `check`.
        """
        with self.writing() as db:
            is_new = not db.execute("SELECT 1 FROM sqlite_schema LIMIT 1").fetchone()
            if is_new:
                for statement in CREATE:
                    db.execute(statement)
        self.check()
        return is_new

    def check(self) -> None:
        """Refuse a file that is none of ours.

        Raises:
            AnnotationStoreError: it is another program's database, or has a schema of another version.
        """
        with self.reading() as db:
            mark, version = (db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version"))
        if mark != APPLICATION_ID:
            raise AnnotationStoreError(
                f"{self.path} is a database, but not one of annotations: move it away, or give another path"
            )
        if version != SCHEMA_VERSION:
            raise AnnotationStoreError(
                f"{self.path} has schema version {version}, and this version of online-dpo reads {SCHEMA_VERSION}: "
                f"use the version of online-dpo that made it"
            )

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction. It is durable when the block ends, and nothing of it happened when the block raises."""
        with self._lock, self._explained():
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                yield self._writer
                self._writer.execute("COMMIT")
            except BaseException:
                # A full disk may have rolled back already.
                if self._writer.in_transaction:
                    self._writer.execute("ROLLBACK")
                raise

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """One state of the file, however many queries the block has."""
        with self._explained():
            try:
                db = self._idle.pop()
            except IndexError:
                db = self._connect()
            try:
                db.execute("BEGIN")
                yield db
            finally:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                if self._closed:
                    db.close()
                else:
                    self._idle.append(db)

    def close(self) -> None:
        """Close all connections; what is in use at the moment, when it is no longer."""
        self._closed = True
        with self._lock:
            self._writer.close()
        while self._idle:
            self._idle.pop().close()

    def _connect(self) -> sqlite3.Connection:
        address = f"{self.path.absolute().as_uri()}?mode=rwc{self._options and '&' + self._options}"
        db = sqlite3.connect(
            address, uri=True, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False,
            cached_statements=256,
        )  # fmt: skip
        db.row_factory = sqlite3.Row
        try:
            mode = db.execute("PRAGMA journal_mode = WAL").fetchone()[0]
            if mode != "wal":
                raise AnnotationStoreError(
                    f"{self.path} is on a file system that cannot have a write-ahead log (SQLite keeps {mode} "
                    f"instead): put the run directory on a local disk"
                )
            db.execute("PRAGMA synchronous = FULL")
            db.execute("PRAGMA foreign_keys = ON")
        except BaseException:
            db.close()
            raise
        return db

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            # A mistake of ours must not look like the user's.
            if isinstance(error, sqlite3.IntegrityError) or getattr(error, "sqlite_errorname", "") == "SQLITE_ERROR":
                raise
            raise AnnotationStoreError(_explain(self.path, error)) from error


def _explain(path: Path, error: sqlite3.DatabaseError) -> str:
    name = getattr(error, "sqlite_errorname", "")
    kind = "_".join(name.split("_")[:2])  # without the extended code
    reasons = {
        "SQLITE_NOTADB": f"{path} is not a SQLite database: move it away, or give another path",
        "SQLITE_CORRUPT": f"{path} is damaged ({error}): restore it from a copy, or salvage it with `sqlite3 .recover`",
        "SQLITE_FULL": f"{path} cannot grow, the disk is full: make room; nothing that was confirmed is lost",
        "SQLITE_READONLY": f"{path} is read-only: give this user the right to write the file and its folder",
        "SQLITE_CANTOPEN": f"{path} cannot be opened: its folder must be there, and writable for this user",
        "SQLITE_BUSY": (
            f"{path} has been locked by another program for {BUSY_TIMEOUT_S:g} s: close what else uses it, such as a "
            f"database browser"
        ),
    }
    return reasons.get(kind, f"{path} cannot be used ({name or 'SQLite'}: {error}): check the disk that it is on")


def _file_system(path: Path) -> str:
    """The type of the file system that a path is on; empty where the system does not tell."""
    try:
        mounts = Path("/proc/self/mounts").read_text().splitlines()
    except OSError:
        return ""
    # Linux writes a space in a path as \040.
    found = [(Path(fields[1].replace("\\040", " ")), fields[2]) for line in mounts if len(fields := line.split()) > 2]
    where = path.resolve()
    inside = [
        (len(mount.parts), number, kind) for number, (mount, kind) in enumerate(found) if where.is_relative_to(mount)
    ]
    return max(inside)[2] if inside else ""
