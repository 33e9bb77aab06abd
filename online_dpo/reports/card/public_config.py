"""A config for strangers: how to do the same, without what tells of the machine and of others' servers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from online_dpo.config.run import RunConfig
from online_dpo.models.locating import HUB_ID

LEFT_OUT = ("run.dir", "cluster", "logging")
"""Sections and fields that say where a run took place, and change nothing of it."""
PRIVATE = ("base_url", "api_key_file", "api_key_env", "extra_body")
"""Fields of endpoints."""

_FILE = re.compile(r".*\.(jsonl|json|gz|parquet|arrow|csv|tsv|txt|yaml|py|sqlite)(:.*)?", re.DOTALL)
_PATH = re.compile(r"(~|\.{1,2})?[/\\].*|[A-Za-z]:[/\\].*", re.DOTALL)


def public_config(config: RunConfig) -> dict[str, Any]:
    """The fields that differ from their defaults; of a local path only the name stays."""
    found = config.model_dump(mode="json", exclude_defaults=True)
    for field in LEFT_OUT:
        section, _, name = field.partition(".")
        if name:
            found.get(section, {}).pop(name, None)
        else:
            found.pop(section, None)
    public: dict[str, Any] = _public(found)
    return public


def _public(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _public(inner) for key, inner in value.items() if key not in PRIVATE}
    if isinstance(value, list | tuple):
        return [_public(inner) for inner in value]
    return public_name(value) if isinstance(value, str) else value


def public_name(value: str) -> str:
    """The last part of what is a local path; everything else as it is."""
    is_local = _PATH.fullmatch(value) or ("/" in value and (_FILE.fullmatch(value) or Path(value).exists()))
    return re.split(r"[/\\]", value.rstrip("/\\"))[-1] if is_local else value


def hub_id(value: str) -> str | None:
    """A name of the hub; None if it names something else."""
    return value if HUB_ID.fullmatch(value) and public_name(value) == value else None
