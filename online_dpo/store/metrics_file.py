"""`metrics.jsonl`: one JSON record a line. Rounds commit how far it reached, so its end can be cut back and checked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Container, Mapping
from typing import Any, NoReturn

from online_dpo.errors import CorruptionError
from online_dpo.store.files import Files

METRICS = "metrics.jsonl"


class MetricsFile:
    """The records of a run.

    Args:
        files: the run directory.
        remedy: what a user can do about damage here, as the end of a sentence.
    """

    def __init__(self, files: Files, remedy: Callable[[], str]) -> None:
        self._files = files
        self._remedy = remedy

    def append(self, record: Mapping[str, Any]) -> None:
        self._files.append(METRICS, json.dumps(record, allow_nan=False, ensure_ascii=False).encode() + b"\n")

    def records(self) -> list[dict[str, Any]]:
        *lines, _in_the_making = self.data().split(b"\n")
        records = []
        for number, line in enumerate(lines, start=1):
            try:
                records.append(json.loads(line))
            except ValueError:
                self._corrupt(f"is damaged: line {number} is not JSON")
        return records

    def position(self) -> dict[str, Any]:
        data = self.data()
        if data:
            self._files.sync(METRICS)
        return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}

    def check(self, position: Mapping[str, Any]) -> None:
        num_bytes = int(position["bytes"])
        if hashlib.sha256(self.data()[:num_bytes]).hexdigest() != position["sha256"]:
            self._corrupt(f"does not match the sha256 that was committed for its first {num_bytes} bytes")

    def truncate(self, position: Mapping[str, Any] | None, keep: Container[str]) -> None:
        if position is not None:
            self.check(position)
        num_bytes = 0 if position is None else int(position["bytes"])
        data = self.data()
        *lines, _in_the_making = data[num_bytes:].split(b"\n")
        kept = b"".join(line + b"\n" for line in lines if _kind_of(line) in keep)
        if kept and kept != data[num_bytes:]:
            self._files.put(METRICS, data[:num_bytes] + kept)
        elif kept != data[num_bytes:]:
            self._files.truncate(METRICS, num_bytes)

    def data(self) -> bytes:
        return self._files.get(METRICS) if self._files.exists(METRICS) else b""

    def _corrupt(self, problem: str) -> NoReturn:
        raise CorruptionError(f"{self._files.root / METRICS} {problem}; {self._remedy()}")


def _kind_of(line: bytes) -> str | None:
    """The kind of a record of the metrics; None for a damaged line, which is then cut."""
    try:
        return str(json.loads(line)["kind"])
    except (ValueError, KeyError, TypeError):
        return None
