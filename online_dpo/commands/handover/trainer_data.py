"""Prompts as the data set of another trainer."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from online_dpo.types import Prompt


def write_prompts(prompts: Sequence[Prompt], path: Path, *, reserved: Collection[str]) -> list[str]:
    """Write a parquet file with the column `prompt`, text or chat messages, and the columns that judges read.

    Parquet, since readers of JSON turn texts that look like dates into dates.

    Args:
        prompts: in order.
        path: of the file.
        reserved: names of columns that the trainer does not hand on.

    Returns:
        Lines about columns that are left out.
    """
    notes = []
    columns: dict[str, list[Any]] = {"prompt": [prompt.content for prompt in prompts]}
    for name in dict.fromkeys(name for prompt in prompts for name in prompt.metadata):
        values = [prompt.metadata.get(name) for prompt in prompts]
        if name in reserved:
            notes.append(f"the column {name} of the prompts is left out: the trainer has a column of this name")
        elif not survives(values):
            notes.append(f"the column {name} of the prompts is left out: its values are of several types")
        else:
            columns[name] = values
    pq.write_table(pa.table(columns), path)
    return notes


def survives(values: Sequence[Any]) -> bool:
    """Whether a column of JSON values is the same after it was written and read."""
    try:
        return _same(pa.array(values).to_pylist(), values)
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        return False


def _same(found: Any, wanted: Any) -> bool:
    """Equal, types included: 1, 1.0 and True are three values."""
    if isinstance(wanted, Mapping):
        return (
            isinstance(found, Mapping)
            and found.keys() == wanted.keys()
            and all(_same(found[k], wanted[k]) for k in wanted)
        )
    if isinstance(wanted, list | tuple):
        return isinstance(found, list) and len(found) == len(wanted) and all(map(_same, found, wanted))
    return type(found) is type(wanted) and found == wanted
