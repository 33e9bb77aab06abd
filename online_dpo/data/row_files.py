"""The rows of a data set, whatever its format, each with the place in its file that an error names.

Local files are read here rather than through `datasets`: its errors do not say which line is malformed, and it needs
seconds to import. Data sets of the hub go through `datasets`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from online_dpo import embedded
from online_dpo.data.arrow_formats import saved_folder
from online_dpo.data.row_formats import SUFFIXES, numbered_rows
from online_dpo.errors import DataError, first_line
from online_dpo.models.locating import HUB_ID
from online_dpo.text_files import shown, unusable_path

_NUM_PEEKED = 8
RowCheck: TypeAlias = Callable[[str, Mapping[str, Any]], None]
"""Refuses a row, given its place; looks for missing columns before anything else."""
Look: TypeAlias = Callable[[Iterable[str]], tuple[Sequence[str], RowCheck]]
"""From the columns that the first row has: those that are looked at, and the check of each row."""


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

    def has(self, name: str) -> bool:
        """Whether any row has a column of this name."""
        names = getattr(self.rows, "column_names", None)
        return name in names if names is not None else any(name in row for row in self.rows)


def label_of(source: Source, field: str) -> str:
    """How errors about a source begin."""
    return f"{field}.source is {source.source}"


def read_table(source: Source, *, field: str, look: Look, item: str) -> Table:
    """Read a whole source and check every row.

    Args:
        source: a section of the config.
        field: its name there, such as `prompts`, for errors.
        look: chooses the columns, and the check that raises DataError on a row that cannot be used at all.
        item: what a row holds, for errors.

    Raises:
        DataError: the source cannot be read or is empty, or the check refuses a row.
    """
    label, path = label_of(source, field), _local_path(source, field)
    if path is None:
        dataset = _load_hub(source, field)
        columns, check = look(dataset.column_names)
        if any(name not in dataset.column_names for name in columns):
            check("the data set", dict.fromkeys(dataset.column_names))
        places: Sequence[str] = [f"row {number}" for number in range(1, len(dataset) + 1)]
        rows: Sequence[Mapping[str, Any]] = dataset
        checked: Sequence[Mapping[str, Any]] = dataset.select_columns(list(columns))
    else:
        numbered = list(numbered_rows(path, label))
        places, rows = [place for place, _ in numbered], [row for _, row in numbered]
        checked, (_, check) = rows, look(rows[0] if rows else ())
    if not len(rows):
        raise DataError(f"{label}, which has no rows; give a source with at least one {item}")
    for place, row in zip(places, checked, strict=True):
        check(place, row)
    return Table(label=label, rows=rows, places=places)


def peek(source: Source, *, field: str, look: Look, item: str) -> None:
    """The checks of a source that need neither tokenizer nor network: a local file's first rows.

    Raises:
        DataError: the file is missing, unreadable or empty, or the check refuses one of these rows. Of a hub id only
            its form is checked.
    """
    label, path = label_of(source, field), _local_path(source, field)
    if path is None:
        return
    peeked = list(islice(numbered_rows(path, label), _NUM_PEEKED))
    if not peeked:
        raise DataError(f"{label}, which has no rows; give a source with at least one {item}")
    _, check = look(peeked[0][1])
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
    if not path.name.endswith(SUFFIXES) and not path.exists() and HUB_ID.fullmatch(source):
        return None
    _expect_default(spec, field, label, ("subset",) if path.is_dir() else ("subset", "split"))
    return local_file(path, label, split=spec.split, setting=f"{field}.split")


def local_file(path: Path, label: str, *, split: str = "train", setting: str = "split") -> Path:
    """A file whose rows can be read, or the folder of a split that `save_to_disk` wrote.

    Args:
        path: what was given.
        label: the start of errors.
        split: which of a folder's splits.
        setting: the field of the config that names it.

    Raises:
        DataError: it is neither.
    """
    known = ", ".join(SUFFIXES)
    why = unusable_path(path)
    if why is not None:
        raise DataError(f"{shown(label)}, which {why}; give a {known} file")
    if path.is_dir():
        saved = saved_folder(path, split, label, setting)
        if saved is None:
            raise DataError(
                f"{label}, which is a folder; give one file ({known}), a folder of save_to_disk, or a hub id org/name"
            )
        return saved
    if not path.exists():
        raise DataError(f"{label}; there is no such file: give a {known} file or a hub id org/name")
    if not path.name.endswith(SUFFIXES):
        raise DataError(f"{label}, whose format is not known; give a file that ends with {known}")
    if not path.is_file():
        raise DataError(f"{label}, which is no regular file but a pipe, device or socket; write the rows into a file")
    return path


def _expect_default(spec: Source, field: str, label: str, names: Sequence[str]) -> None:
    """Refuse what only data sets of the hub have."""
    for name in names:
        value = getattr(spec, name)
        if value != {"subset": None, "split": "train"}[name]:
            raise DataError(
                f"{field}.{name} is {value}, but {label}, which is a file; only data sets of the hub have a {name}: "
                f"remove {field}.{name}"
            )


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
