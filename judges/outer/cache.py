"""Verdicts kept in an SQLite file, so that nobody pays twice for the same one: across shards, resumes and runs.

An entry is addressed by what it depends on: the judge's fingerprint, the prompt with its metadata, and the
completions in their order. Failed calls are never kept, nor questions that were not asked.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import sqlite3
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from judges.calling import Caller, Measurements
from judges.fingerprint import fingerprint
from judges.hosting import Hosting
from judges.protocol import Question, check_verdicts, count, read_number
from judges.spec import JudgeSpec
from judges.threads import in_thread
from online_dpo.errors import JudgeError
from online_dpo.types import Verdict

log = logging.getLogger(__name__)

PATIENCE_S = 60.0
"""How long a writer waits for others; each holds the file for milliseconds."""

FIELDS = ("first", "second", "score", "probability", "reason", "abstention", "uncertainty", "rationale")

FORMAT = 3
"""Of what is kept of a verdict. It is a part of every key, so entries of another format are never found."""


def build(spec: JudgeSpec, inner: Mapping[str, Caller], hosting: Hosting) -> Cached:
    """Build the cache in front of the judge inside it."""
    key = f"{FORMAT} {fingerprint(spec.inner['judge'], version=spec.section.version)}"
    return Cached(inner["judge"], path=spec.resolve(spec.section.path), key=key, field=f"{spec.field}.path")


class VerdictStore:
    """Digest -> verdicts of one question. Any number of processes may share the file."""

    def __init__(self, path: Path, *, field: str) -> None:
        """Create the file where it is missing.

        Raises:
            JudgeError: the path cannot be used as such a file.
        """
        self._lock, self._field = threading.Lock(), field
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Each statement is its own transaction: a reader never sees half an entry, a kill loses at most one.
            self._connection = sqlite3.connect(path, timeout=PATIENCE_S, isolation_level=None, check_same_thread=False)
            with closing(self._connection.cursor()) as cursor:
                cursor.execute("CREATE TABLE IF NOT EXISTS verdicts (key TEXT PRIMARY KEY, said TEXT NOT NULL)")
                cursor.execute("SELECT key, said FROM verdicts LIMIT 1")
        except (OSError, sqlite3.Error) as error:
            raise JudgeError(
                f"{field} is {path}, which cannot be used as a verdict cache: {error}; give a path that is writable "
                f"and is either missing or such a file"
            ) from None

    def get(
        self, keys: Sequence[str], check: Callable[[str, list[Verdict]], None] = lambda key, verdicts: None
    ) -> dict[str, list[Verdict]]:
        """Those that are there and can be read; their prompt_id is empty.

        An entry that cannot be read is removed and counted, so that the answer that is now paid for takes its place.

        Args:
            keys: of the questions.
            check: raises JudgeError for verdicts that are no answer to the question of a key.
        """
        found = {}
        with self._lock:
            for key in keys:
                row = self._connection.execute(
                    "SELECT CAST(said AS BLOB) FROM verdicts WHERE key = ?", (key,)
                ).fetchone()
                if row is None:
                    continue
                try:
                    verdicts = _read_entry(row[0])
                    check(key, verdicts)
                    found[key] = verdicts
                except (ValueError, TypeError, ArithmeticError, RecursionError, JudgeError) as error:
                    count("num_cache_malformed")
                    log.warning("%s: entry %s cannot be read and is asked again: %s", self._field, key[:12], error)
                    self._connection.execute(
                        "DELETE FROM verdicts WHERE key = ? AND CAST(said AS BLOB) = ?", (key, row[0])
                    )
        return found

    def put(self, answers: Mapping[str, Sequence[Verdict]]) -> None:
        """Keep answers; one that is there already stays, since somebody may have used it."""
        rows = [
            (key, json.dumps([[getattr(v, name) for name in FIELDS] for v in verdicts]))
            for key, verdicts in answers.items()
        ]
        with self._lock:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                self._connection.executemany("INSERT OR IGNORE INTO verdicts VALUES (?, ?)", rows)
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")


def _read_entry(said: bytes) -> list[Verdict]:
    """One entry of the file.

    Raises:
        ValueError, TypeError, ArithmeticError, RecursionError: it is none.
    """
    entries = json.loads(said)
    verdicts = [Verdict(prompt_id="", **dict(zip(FIELDS, entry, strict=True))) for entry in entries]
    for verdict in verdicts:
        numbers = (verdict.score, verdict.probability, verdict.uncertainty)
        positions = (verdict.first, 0 if verdict.second is None else verdict.second)
        if any(type(position) is not int for position in positions):
            raise ValueError("a position is no whole number")
        if any(number is not None and read_number(number) is None for number in numbers):
            raise ValueError("a number is none")
        if not (isinstance(verdict.reason, str | None) and isinstance(verdict.rationale, str | None)):
            raise ValueError("a reason is no text")
        if verdict.failed or verdict.unasked:
            raise ValueError("it is no answer, and such are never kept")
    return verdicts


class Cached:
    """Asks another judge what is not in the cache, and keeps each answer as soon as its call is done."""

    def __init__(self, inner: Caller, *, path: Path, key: str, field: str) -> None:
        """Open the cache.

        Args:
            inner: whom to ask.
            path: of the file.
            key: what its answers depend on besides the question.
            field: the path's field in the config.

        Raises:
            JudgeError: the path cannot be used.
        """
        self._inner, self._key = inner, key
        self._store = VerdictStore(path, field=field)

    async def judge(self, questions: Sequence[Question], measured: Measurements | None = None) -> list[list[Verdict]]:
        if any(question.again for question in questions):  # an answer from the cache would agree with itself
            return await self._inner.ask(questions, measured)
        keys = [self._digest(question) for question in questions]
        known = await self._look_up(dict(zip(keys, questions, strict=True)))
        missing: dict[str, Question] = {}
        for key, question in zip(keys, questions, strict=True):
            if key not in known:
                missing.setdefault(key, question)
        count("num_cache_misses", len(missing))
        count("num_cache_hits", len(questions) - len(missing))
        digests = {question.prompt_id: key for key, question in missing.items()}
        batches = self._inner.batches(list(missing.values()))
        for answers in await asyncio.gather(*(self._pay(batch, digests, measured) for batch in batches)):
            known |= answers
        return [
            [replace(verdict, prompt_id=question.prompt_id) for verdict in known[key]]
            for key, question in zip(keys, questions, strict=True)
        ]

    async def _pay(
        self, batch: Sequence[Question], digests: Mapping[str, str], measured: Measurements | None
    ) -> dict[str, list[Verdict]]:
        said = await self._inner.ask_batch(batch, measured)
        answers = {digests[q.prompt_id]: verdicts for q, verdicts in zip(batch, said, strict=True)}
        kept = {key: verdicts for key, verdicts in answers.items() if not any(v.failed or v.unasked for v in verdicts)}
        try:
            await in_thread(self._store.put, kept)
        except sqlite3.Error as error:  # what was paid for is used, kept or not
            count("num_cache_errors")
            log.warning("%s: verdicts could not be kept: %s", self._inner.label, error)
        return answers

    async def _look_up(self, asked: Mapping[str, Question]) -> dict[str, list[Verdict]]:
        def check(key: str, verdicts: list[Verdict]) -> None:
            question = asked[key]
            check_verdicts([question], [[replace(verdict, prompt_id=question.prompt_id) for verdict in verdicts]])

        try:
            return await in_thread(self._store.get, list(asked), check)
        except sqlite3.Error as error:
            count("num_cache_errors")
            log.warning("%s: the verdict cache could not be read: %s", self._inner.label, error)
            return {}

    def _digest(self, question: Question) -> str:
        parts = [self._key, question.prompt, list(question.completions), dict(question.metadata)]
        return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()
