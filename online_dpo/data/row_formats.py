"""Rows of a local file in any format that is known, each with its place in the file, which errors name."""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from online_dpo.data.arrow_formats import NumberedRow, read_arrow, read_parquet, read_saved
from online_dpo.errors import DataError
from online_dpo.text_files import foreign_encoding, not_utf8, shown

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".parquet", ".arrow", ".csv")
MAX_DEPTH = 100  # of lists and objects in a row; judges, commits and logs walk through it


def numbered_rows(path: Path, label: str) -> Iterator[NumberedRow]:
    """Every row of a file, or of a folder that `save_to_disk` wrote, with its place, in order.

    Raises:
        DataError: the file, or a row of it, cannot be read; names the line.
    """
    readers: dict[str, Callable[[Path, str], Iterator[NumberedRow]]] = {
        ".jsonl": _read_jsonl, ".gz": _read_jsonl, ".json": _read_json, ".parquet": read_parquet, ".csv": _read_csv,
        ".arrow": read_arrow,
    }  # fmt: skip
    try:
        if path.is_dir():
            yield from read_saved(path, label)
            return
        if path.suffix in (".jsonl", ".json", ".csv"):
            with path.open("rb") as stream:
                foreign = foreign_encoding(stream.read(64))
            if foreign is not None:
                raise DataError(f"{label}, which {foreign}")
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
    except UnicodeDecodeError as error:
        raise DataError(f"{label}; line {number} {not_utf8(error)}") from None
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
    content = path.read_bytes()
    try:
        rows = _parse(content)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{label}; line {line} {not_utf8(error)}") from None
    except ValueError as error:
        raise DataError(f"{label}, which is malformed JSON ({error}); correct it") from None
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise DataError(f"{label}; row {number} is {kind(row)}, but each is a JSON object: correct or remove it")
        yield f"row {number}", row


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
        except UnicodeDecodeError as error:
            raise DataError(f"{label}; line {_first_foreign_line(path)} {not_utf8(error)}") from None
        except csv.Error as error:
            raise DataError(
                f"{label}; the row at line {begin} is malformed CSV ({error}): correct or remove it"
            ) from None


def _first_foreign_line(path: Path) -> int:
    """The first line that is not UTF-8; a text stream decodes blocks, and knows no lines when it fails."""
    with path.open("rb") as lines:
        return next((number for number, line in enumerate(lines, start=1) if not _is_utf8(line)), 1)


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _parse(content: bytes) -> Any:
    """JSON that can be written as UTF-8 and as JSON again; raises ValueError."""
    text = content.decode("utf-8-sig")
    try:
        parsed = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_distinct)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if text.count("[") + text.count("{") > MAX_DEPTH and _is_deep(parsed):
        raise ValueError(f"it is nested more than {MAX_DEPTH} levels deep")
    # Half of a surrogate pair is legal JSON, but neither a tokenizer nor parquet takes it.
    if b"\\ud" in content.lower():
        json.dumps(parsed, ensure_ascii=False).encode("utf-8")
    return parsed


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"it has two values named {shown(next(name for name in names if names.count(name) > 1))}")
    return found


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [
            part
            for item in level
            if isinstance(item, dict | list)
            for part in (item.values() if isinstance(item, dict) else item)
        ]
    return bool(level)


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
