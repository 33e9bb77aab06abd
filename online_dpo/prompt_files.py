"""The rows of a prompt source, whatever their format, each with the place in its file that an error names.

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
from typing import Any, NoReturn, Protocol

from online_dpo import embedded
from online_dpo.errors import DataError
from online_dpo.models import HUB_ID
from online_dpo.types import Message

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".parquet", ".csv")

_NUM_PEEKED = 8
NumberedRow = tuple[str, dict[str, Any]]
"""`("line 3", {column: value})`; lines and rows count from 1."""


class Spec(Protocol):
    """What `config.PromptsSection` and `config.EvaluationSet` have in common."""

    @property
    def source(self) -> str: ...
    @property
    def subset(self) -> str | None: ...
    @property
    def split(self) -> str: ...
    @property
    def field(self) -> str: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """All rows of a source; every value of the prompt's column has been checked."""

    label: str  # "prompts.source is data/x.jsonl", the start of errors
    rows: Sequence[Mapping[str, Any]]  # a list, or a memory-mapped `datasets.Dataset`
    places: Sequence[str]  # "line 3" or "row 3" of each row
    has_chat: bool  # whether any prompt is a list of messages

    def column(self, name: str) -> list[Any]:
        """A column's values, None where a row lacks it."""
        # Reading one column of a Dataset leaves the others, which may be images, undecoded.
        rows = self.rows.select_columns([name]) if hasattr(self.rows, "select_columns") else self.rows
        return [row.get(name) for row in rows]


def load_table(spec: Spec, *, field: str) -> Table:
    """Read a whole source and check the prompt's column in every row.

    Args:
        spec: names the source and the column.
        field: the config section that `spec` is, such as `prompts`, for errors.

    Raises:
        DataError: the source cannot be read, is empty, or has a row without a usable prompt.
    """
    label = f"{field}.source is {spec.source}"
    path = _local_path(spec, field)
    if path is None:
        dataset = _load_hub(spec, field)
        if spec.field not in dataset.column_names:
            check_row("the data set", dict.fromkeys(dataset.column_names), spec.field, field=field, label=label)
        places: Sequence[str] = [f"row {number}" for number in range(1, len(dataset) + 1)]
        rows: Sequence[Mapping[str, Any]] = dataset
        checked: Sequence[Mapping[str, Any]] = dataset.select_columns([spec.field])
    else:
        numbered = list(_read(path, label))
        places, rows = [place for place, _ in numbered], [row for _, row in numbered]
        checked = rows
    if not len(rows):
        raise DataError(f"{label}, which has no rows; give a source with at least one prompt")
    has_chat = False
    for place, row in zip(places, checked, strict=True):
        check_row(place, row, spec.field, field=field, label=label)
        has_chat |= isinstance(row[spec.field], list)
    return Table(label=label, rows=rows, places=places, has_chat=has_chat)


def validate_source(spec: Spec, field: str) -> None:
    """The checks of a source that need neither tokenizer nor network: a local file's first rows.

    Args:
        spec: names the source and the column.
        field: the config section that `spec` is, such as `evaluation.sets.heldout`, for errors.

    Raises:
        DataError: the file is missing, unreadable, empty or without the prompt's column. Of a hub id only its form
            is checked.
    """
    label = f"{field}.source is {spec.source}"
    path = _local_path(spec, field)
    if path is None:
        return
    peeked = list(islice(_read(path, label), _NUM_PEEKED))
    if not peeked:
        raise DataError(f"{label}, which has no rows; give a source with at least one prompt")
    for place, row in peeked:
        check_row(place, row, spec.field, field=field, label=label)


def check_row(place: str, row: Mapping[str, Any], column: str, *, field: str, label: str) -> None:
    """Refuse a row whose prompt is missing or neither text nor chat messages.

    Raises:
        DataError: names the place, what was found there, and what to do.
    """
    if column not in row:
        raise DataError(
            f"{label}; {place} has no column {column}, it has {', '.join(row) or 'none at all'}: set {field}.field to "
            f"the column that holds the prompts"
        )
    value = row[column]
    if isinstance(value, str):
        return
    if not isinstance(value, list):
        raise DataError(
            f"{label}; {column} of {place} is {_kind(value)}, but a prompt is text or a list of chat messages: mend or "
            f"remove the row, or set {field}.field to another column"
        )
    for message in value:
        fields = message if isinstance(message, dict) else {}
        extra = [v for k, v in fields.items() if k not in ("role", "content") and v is not None]
        if not all(isinstance(part, str) for part in (fields.get("role"), fields.get("content"), *extra)):
            raise DataError(
                f"{label}; {column} of {place} has the message {_shortened(message)}, but a message has a role and a "
                f"content that are text, and nothing that is not: mend or remove the row"
            )
    if value and value[-1]["role"] == "assistant":
        raise DataError(
            f"{label}; {column} of {place} ends with a message of the assistant, which leaves nothing to answer: end "
            f"it with the user's message, and keep the answer in another column if a judge needs it"
        )


def messages_of(value: list[dict[str, str | None]]) -> tuple[Message, ...]:
    """Checked chat messages, without the empty keys that parquet gives to every message when one has them."""
    return tuple({key: text for key, text in message.items() if text is not None} for message in value)


# ---- where the rows are


def _local_path(spec: Spec, field: str) -> Path | None:
    """The file of a local source, None where the source is a hub id."""
    source, label = spec.source, f"{field}.source is {spec.source}"
    if source.startswith("embedded:"):
        try:
            path = embedded.resolve(source.removeprefix("embedded:"))
        except LookupError as error:
            raise DataError(f"{label}; {error.args[0]}") from None
    else:
        path = Path(source).expanduser()
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


def _load_hub(spec: Spec, field: str) -> Any:
    import datasets
    import huggingface_hub

    label = f"{field}.source is {spec.source}"
    try:
        # Without this look, an unreachable hub costs half a minute of retries inside `datasets`.
        if not huggingface_hub.is_offline_mode():
            huggingface_hub.HfApi().dataset_info(spec.source, timeout=10)
        return datasets.load_dataset(spec.source, spec.subset, split=spec.split)
    # Errors of the hub, of HTTP and of a data set's own layout have no common base; the cause stays attached.
    except Exception as error:
        first = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
        raise DataError(
            f"{label} (subset {spec.subset}, split {spec.split}); there is no such file, and no such data set could be "
            f"loaded from the hub ({first}): check {field}.source, subset and split, set HF_HUB_OFFLINE=1 to use a "
            f"cached copy, or give a local file"
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
        raise DataError(f"{label}; line {number} is {_kind(row)}, but each line is a JSON object: mend or remove it")
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
            raise DataError(f"{label}; row {number} is {_kind(row)}, but each is a JSON object: mend or remove it")
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


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, dict | list | str):
        return {"dict": "an object", "list": "a list", "str": "text"}[type(value).__name__]
    return f"{type(value).__name__} {_shortened(value)}"


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
