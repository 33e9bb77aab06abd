"""Rows of a local file in any format that is known, each with its place in the file, which errors name."""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

from online_dpo.errors import DataError

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".parquet", ".csv")

NumberedRow: TypeAlias = tuple[str, dict[str, Any]]
"""`("line 3", {column: value})`; lines and rows count from 1."""


def numbered_rows(path: Path, label: str) -> Iterator[NumberedRow]:
    """Every row of a file with its place, in the order of the file.

    Raises:
        DataError: the file, or a row of it, cannot be read; names the line.
    """
    readers: dict[str, Callable[[Path, str], Iterator[NumberedRow]]] = {
        ".jsonl": _read_jsonl, ".gz": _read_jsonl, ".json": _read_json, ".parquet": _read_parquet, ".csv": _read_csv,
    }  # fmt: skip
    try:
        yield from readers[path.suffix](path, label)
    except OSError as error:
        raise DataError(f"{label}, which cannot be read ({error}); check the file and your access to it") from error


def _read_jsonl(path: Path, label: str) -> Iterator[NumberedRow]:
    number = 0
    # Bytes, so that a line that is not UTF-8 still has a number.
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as lines:
        try:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield f"line {number}", _parse_object(line, number, label)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DataError(
                f"{label}, whose gzip stream is damaged after line {number} ({error}); copy or compress it again"
            ) from None


def _parse_object(line: bytes, number: int, label: str) -> dict[str, Any]:
    try:
        row = _parse(line.rstrip())
    except ValueError as error:
        why = f"{error.msg}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
        raise DataError(f"{label}; line {number} is malformed JSON ({why}): correct or remove it") from None
    if not isinstance(row, dict):
        raise DataError(f"{label}; line {number} is {kind(row)}, but each line is a JSON object: correct or remove it")
    return row


def _read_json(path: Path, label: str) -> Iterator[NumberedRow]:
    """An array of objects; or JSON lines, which `datasets` and pandas also write under this suffix."""
    with path.open("rb") as stream:
        start = stream.read(64).decode("utf-8-sig", errors="replace").lstrip()
    if not start.startswith("["):
        yield from _read_jsonl(path, label)
        return
    try:
        rows = _parse(path.read_bytes())
    except ValueError as error:
        raise DataError(f"{label}, which is malformed JSON ({error}); correct it") from None
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise DataError(f"{label}; row {number} is {kind(row)}, but each is a JSON object: correct or remove it")
        yield f"row {number}", row


def _read_parquet(path: Path, label: str) -> Iterator[NumberedRow]:
    import pyarrow
    from pyarrow import parquet

    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    yield f"row {number}", row
    except pyarrow.ArrowException as error:
        raise DataError(f"{label}, which is no intact parquet file ({error}); write or copy it again") from None


def _read_csv(path: Path, label: str) -> Iterator[NumberedRow]:
    """Every value is text: CSV has no types, and guessing them would turn the id 007 into 7."""
    begin = 1
    with path.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.reader(stream, strict=True)
        try:
            header = next(reader, [])
            if len(set(header)) != len(header):
                raise DataError(f"{label}, whose header names a column twice ({', '.join(header)}); rename one")
            begin = reader.line_num + 1
            for cells in reader:
                # The reader gives no cells for a blank line, which is no row.
                if cells and len(cells) != len(header):
                    raise DataError(
                        f"{label}; line {begin} has {len(cells)} cells and the header has {len(header)}: quote text "
                        f"that contains commas, or correct the line"
                    )
                if cells:
                    yield f"line {begin}", dict(zip(header, cells, strict=True))
                begin = reader.line_num + 1
        except (csv.Error, UnicodeDecodeError) as error:
            raise DataError(
                f"{label}; the row at line {begin} is malformed CSV ({error}): correct or remove it"
            ) from None


def _parse(content: bytes) -> Any:
    """JSON that can be written as UTF-8 and as JSON again; raises ValueError."""
    parsed = json.loads(content.decode("utf-8-sig"), parse_constant=_refuse_constant)
    # Half of a surrogate pair is legal JSON, but neither a tokenizer nor parquet takes it.
    if b"\\ud" in content.lower():
        json.dumps(parsed, ensure_ascii=False).encode("utf-8")
    return parsed


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def kind(value: Any) -> str:
    """What a value of JSON is, in the words of an error."""
    if value is None:
        return "null"
    if isinstance(value, dict | list | str):
        return {"dict": "an object", "list": "a list", "str": "text"}[type(value).__name__]
    return f"{type(value).__name__} {shortened(value)}"


def shortened(value: Any) -> str:
    """A value as an error shows it."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
