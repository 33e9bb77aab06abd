"""The rows of a data set, whatever its format, each with the place in its file that an error names.

Local files are read here rather than through `datasets`: its errors do not say which line is malformed, and it needs
seconds to import. Data sets of the hub go through `datasets`.
"""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn, Protocol, TypeAlias

from online_dpo import embedded
from online_dpo.errors import DataError, first_line
from online_dpo.models.locating import HUB_ID

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".parquet", ".csv")

_NUM_PEEKED = 8
NumberedRow = tuple[str, dict[str, Any]]
"""`("line 3", {column: value})`; lines and rows count from 1."""

RowCheck: TypeAlias = Callable[[str, Mapping[str, Any]], None]
"""Refuses a row, given its place; looks for missing columns before anything else."""


class Source(Protocol):
    """What every section of the config that names a data set has."""

    @property
    def source(self) -> str: ...
    @property
    def subset(self) -> str | None: ...
    @property
    def split(self) -> str: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """All rows of a source; the columns that were asked for have been checked in every row."""

    label: str  # "prompts.source is data/x.jsonl", the start of errors
    rows: Sequence[Mapping[str, Any]]  # a list, or a memory-mapped `datasets.Dataset`
    places: Sequence[str]  # "line 3" or "row 3" of each row

    def column(self, name: str) -> list[Any]:
        """A column's values, None where a row lacks it."""
        # Reading one column of a Dataset leaves the others, which may be images, undecoded.
        rows = self.rows.select_columns([name]) if hasattr(self.rows, "select_columns") else self.rows
        return [row.get(name) for row in rows]


def label_of(source: Source, field: str) -> str:
    """How errors about a source begin."""
    return f"{field}.source is {source.source}"


def read_table(source: Source, *, field: str, columns: Sequence[str], check: RowCheck, item: str) -> Table:
    """Read a whole source and check every row.

    Args:
        source: a section of the config.
        field: its name there, such as `prompts`, for errors.
        columns: what `check` looks at.
        check: raises DataError on a row that cannot be used at all.
        item: what a row holds, for errors.

    Raises:
        DataError: the source cannot be read or is empty, or `check` refuses a row.
    """
    label, path = label_of(source, field), _local_path(source, field)
    if path is None:
        dataset = _load_hub(source, field)
        if any(name not in dataset.column_names for name in columns):
            check("the data set", dict.fromkeys(dataset.column_names))
        places: Sequence[str] = [f"row {number}" for number in range(1, len(dataset) + 1)]
        rows: Sequence[Mapping[str, Any]] = dataset
        checked: Sequence[Mapping[str, Any]] = dataset.select_columns(list(columns))
    else:
        numbered = list(_read(path, label))
        places, rows = [place for place, _ in numbered], [row for _, row in numbered]
        checked = rows
    if not len(rows):
        raise DataError(f"{label}, which has no rows; give a source with at least one {item}")
    for place, row in zip(places, checked, strict=True):
        check(place, row)
    return Table(label=label, rows=rows, places=places)


def peek(source: Source, *, field: str, check: RowCheck, item: str) -> None:
    """The checks of a source that need neither tokenizer nor network: a local file's first rows.

    Raises:
        DataError: the file is missing, unreadable or empty, or `check` refuses one of these rows. Of a hub id only its
            form is checked.
    """
    label, path = label_of(source, field), _local_path(source, field)
    if path is None:
        return
    peeked = list(islice(_read(path, label), _NUM_PEEKED))
    if not peeked:
        raise DataError(f"{label}, which has no rows; give a source with at least one {item}")
    for place, row in peeked:
        check(place, row)


def row_ids(table: Table, name: str) -> list[str]:
    """The `<name>_id` or `id` column where it names every row differently, otherwise row numbers."""
    for column in (f"{name}_id", "id"):
        if column not in table.rows[0]:
            continue
        ids = [str(value) for value in table.column(column) if isinstance(value, str | int)]
        if len(set(ids)) == len(table.rows):
            return ids
    return [f"{row:06d}" for row in range(len(table.rows))]


# ---- where the rows are


def _local_path(spec: Source, field: str) -> Path | None:
    """The file of a local source, None where the source is a hub id."""
    source, label = spec.source, label_of(spec, field)
    try:
        path = embedded.path_of(source)
    except LookupError as error:
        raise DataError(f"{label}; {error.args[0]}") from None
    known = path.name.endswith(SUFFIXES)
    if not known and not path.exists() and HUB_ID.fullmatch(source):
        return None
    if path.is_dir():
        raise DataError(f"{label}, which is a folder; give one file ({', '.join(SUFFIXES)}) or a hub id org/name")
    if not path.exists():
        raise DataError(f"{label}; there is no such file: give a {', '.join(SUFFIXES)} file or a hub id org/name")
    if not known:
        raise DataError(f"{label}, whose format is not known; give a file that ends with {', '.join(SUFFIXES)}")
    for name, value, default in (("subset", spec.subset, None), ("split", spec.split, "train")):
        if value != default:
            raise DataError(
                f"{field}.{name} is {value}, but {label}, which is a file; only data sets of the hub have a {name}: "
                f"remove {field}.{name}"
            )
    return path


def _load_hub(spec: Source, field: str) -> Any:
    import datasets
    import huggingface_hub

    label = label_of(spec, field)
    try:
        # Without this look, an unreachable hub costs half a minute of retries inside `datasets`.
        if not huggingface_hub.is_offline_mode():
            huggingface_hub.HfApi().dataset_info(spec.source, timeout=10)
        return datasets.load_dataset(spec.source, spec.subset, split=spec.split)
    # Errors of the hub, of HTTP and of a data set's own layout have no common base; the cause stays attached.
    except Exception as error:
        raise DataError(
            f"{label} (subset {spec.subset}, split {spec.split}); there is no such file, and no such data set could be "
            f"loaded from the hub ({first_line(error)}): check {field}.source, subset and split, set "
            f"HF_HUB_OFFLINE=1 to use a cached copy, or give a local file"
        ) from error


# ---- formats


def _read(path: Path, label: str) -> Iterator[NumberedRow]:
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
        raise DataError(f"{label}; line {number} is malformed JSON ({why}): mend or remove it") from None
    if not isinstance(row, dict):
        raise DataError(f"{label}; line {number} is {kind(row)}, but each line is a JSON object: mend or remove it")
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
        raise DataError(f"{label}, which is malformed JSON ({error}); mend it") from None
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise DataError(f"{label}; row {number} is {kind(row)}, but each is a JSON object: mend or remove it")
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
                        f"that contains commas, or mend the line"
                    )
                if cells:
                    yield f"line {begin}", dict(zip(header, cells, strict=True))
                begin = reader.line_num + 1
        except (csv.Error, UnicodeDecodeError) as error:
            raise DataError(f"{label}; the row at line {begin} is malformed CSV ({error}): mend or remove it") from None


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
