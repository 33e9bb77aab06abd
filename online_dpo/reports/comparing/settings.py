"""What differs between runs: fields of their configs, and what the runs began with."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from online_dpo.config.resuming import changes, leaves
from online_dpo.config.run import RunConfig
from online_dpo.reports.comparing.runs import ComparedRun
from online_dpo.reports.page.report import fingerprints

ABSENT = "-"
"""In place of a value: the run's config has no such field."""
UNREADABLE = "?"
"""In place of a value: the run's config cannot be read."""

Row = tuple[str, Sequence[str]]
"""A name, and its value in each run."""


def differing_fields(first: RunConfig, second: RunConfig) -> list[str]:
    """Dotted names of fields that shape the data and differ; limits, hosting and the like may differ."""
    return [field for field, _, _, is_free in changes(first, second) if not is_free]


def config_rows(runs: Sequence[ComparedRun]) -> list[Row]:
    """Every field of the configs whose value is not the same in all runs."""
    known = [None if run.record.config is None else dict(leaves(run.record.config)) for run in runs]
    fields = sorted({field for config in known if config is not None for field in config})
    rows: list[Row] = []
    for field in fields:
        values = [UNREADABLE if config is None else _shown(config, field) for config in known]
        if len({value for value, config in zip(values, known, strict=True) if config is not None}) > 1:
            rows.append((field, values))
    return rows


def origin_rows(runs: Sequence[ComparedRun]) -> list[Row]:
    """Inputs whose content, and packages whose version, is not the same in all runs."""
    return [
        *_differing([{name: digest[:16] for name, digest in fingerprints(run.record)} for run in runs]),
        *_differing([dict(run.record.info.get("packages", {})) for run in runs]),
    ]


def _differing(known: Sequence[Mapping[str, str]]) -> Iterator[Row]:
    for name in dict.fromkeys(name for found in known for name in found):
        values = [found.get(name, ABSENT) for found in known]
        if len(set(values)) > 1:
            yield name, values


def _shown(config: Mapping[str, tuple[Any, bool]], field: str) -> str:
    if field not in config:
        return ABSENT
    value = config[field][0]
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
