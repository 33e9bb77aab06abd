"""Rows of Arrow data: parquet, `.arrow` files, and the folders that `save_to_disk` of `datasets` writes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

from online_dpo.errors import DataError
from online_dpo.text_files import shown

NumberedRow: TypeAlias = tuple[str, dict[str, Any]]
"""`("line 3", {column: value})`; lines and rows count from 1."""

STATE, SPLITS = "state.json", "dataset_dict.json"
BATCH_ROWS = 1024


def read_parquet(path: Path, label: str) -> Iterator[NumberedRow]:
    """The rows of a parquet file.

    Raises:
        DataError: the file, or a value in it, cannot be read.
    """
    from pyarrow import parquet

    def batches() -> Iterator[Any]:
        with parquet.ParquetFile(path) as file:
            _expect_distinct(file.schema_arrow.names, label)
            yield from file.iter_batches(batch_size=BATCH_ROWS)

    yield from _rows(batches, label, "parquet file")


def read_arrow(path: Path, label: str) -> Iterator[NumberedRow]:
    """The rows of an Arrow file, in the streaming format (which `datasets` writes) or the random-access one.

    Raises:
        DataError: as `read_parquet`.
    """
    yield from _rows(lambda: _arrow_batches([path], label), label, "Arrow file")


def read_saved(folder: Path, label: str) -> Iterator[NumberedRow]:
    """The rows of a folder that `Dataset.save_to_disk` wrote, in its order.

    Raises:
        DataError: a file is missing or damaged.
    """
    try:
        names = [str(file["filename"]) for file in json.loads((folder / STATE).read_bytes())["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(
            f"{label}, whose {STATE} cannot be read ({type(error).__name__}); save it again with save_to_disk"
        ) from None
    missing = [name for name in names if not (folder / Path(name).name).is_file()]
    if missing:
        raise DataError(f"{label}, which lacks its file {shown(missing[0])}; copy it again, or save it again")
    yield from _rows(lambda: _arrow_batches([folder / Path(name).name for name in names], label), label, "Arrow file")


def saved_folder(folder: Path, split: str, label: str, setting: str) -> Path | None:
    """The folder of one split that `save_to_disk` wrote; None where that is not what the folder is.

    Raises:
        DataError: there is no such split.
    """
    if (folder / STATE).is_file():
        if split != "train":
            raise DataError(f"{setting} is {split}, but {label}, which was saved without splits: remove {setting}")
        return folder
    if not (folder / SPLITS).is_file():
        return None
    if (folder / split / STATE).is_file() and Path(split).name == split:
        return folder / split
    known = sorted(state.parent.name for state in folder.glob(f"*/{STATE}"))
    raise DataError(
        f"{setting} is {split}, but {label}, which has the splits {', '.join(known) or 'none'}: set {setting} "
        f"to one of them"
    )


def _arrow_batches(paths: list[Path], label: str) -> Iterator[Any]:
    import pyarrow

    for path in paths:
        with pyarrow.memory_map(str(path)) as source:
            # A file of the random-access format begins with these letters, a stream with the length of its schema.
            is_file = source.read(6) == b"ARROW1"
            source.seek(0)
            with pyarrow.ipc.open_file(source) if is_file else pyarrow.ipc.open_stream(source) as reader:
                _expect_distinct(reader.schema.names, label)
                found = map(reader.get_batch, range(reader.num_record_batches)) if is_file else reader
                for batch in found:
                    batch.validate(full=True)  # offsets of a damaged file would else be followed out of its memory
                    for start in range(0, batch.num_rows, BATCH_ROWS):
                        yield batch.slice(start, BATCH_ROWS)


def _rows(batches: Callable[[], Iterator[Any]], label: str, what: str) -> Iterator[NumberedRow]:
    import pyarrow

    number = 0
    try:
        for batch in batches():
            for row in _plain_rows(batch, number, label):
                number += 1
                yield f"row {number}", row
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        why = " ".join(str(error).split())[:300]
        raise DataError(f"{label}, which is no intact {what} ({why}); write or copy it again") from None


def _plain_rows(batch: Any, before: int, label: str) -> list[dict[str, Any]]:
    """A batch as Python's values; what Python has no value for is told with its place."""
    # Dates of the year 0, and bytes that are no UTF-8, are legal in Arrow.
    try:
        rows: list[dict[str, Any]] = batch.to_pylist()
        return rows
    except (ValueError, OverflowError, RecursionError) as error:
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            for place, value in enumerate(column, start=before + 1):
                try:
                    value.as_py()
                except (ValueError, OverflowError, RecursionError) as found:
                    why = " ".join(str(found).split())[:200]
                    raise DataError(
                        f"{label}; {shown(name)} of row {place} cannot be read ({why}): correct or remove the row, or "
                        f"remove the column"
                    ) from None
        raise DataError(f"{label}; rows after row {before} cannot be read ({error})") from None


def _expect_distinct(names: list[str], label: str) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise DataError(f"{label}, which has two columns named {shown(twice[0])}; rename or remove one")
