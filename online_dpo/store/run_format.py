"""What makes a folder a run directory: its settings, its format version, and what else may lie in it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from online_dpo.errors import RunDirectoryError
from online_dpo.store.files import TEMPORARY
from online_dpo.store.history import canonical_json
from online_dpo.store.rewinding import SET_ASIDE

FORMAT_VERSION = 3
RUN_FILES = {"config.yaml", "run.json"}
ANNOTATION = "annotation"
"""The folder of what people are asked and answer. It is no commit: others write it while the run is up, or without it,
and it stays where it is when rounds are set aside."""
SFT = "sft"
"""The folder of the run that comes before the first round, in a run directory of its own."""
INITIAL_POLICY = "initial-policy"
"""The commit of the first round that holds the adapter which that run made."""


def holds_run(path: Path) -> bool:
    """Whether the folder holds a run. A `create` that was killed does not count and may be repeated."""
    return any((path / f"{name}.sha256").is_file() for name in ("run", "amendment"))


def run_files(config_yaml: str, info: Mapping[str, Any]) -> dict[str, bytes]:
    """The content of `config.yaml` and `run.json`."""
    data = config_yaml.encode()
    own = {"format_version": FORMAT_VERSION, "config_sha256": hashlib.sha256(data).hexdigest()}
    if own.keys() & info.keys():
        raise ValueError(f"info must not have the keys {sorted(own)}")
    return {"config.yaml": data, "run.json": canonical_json({**own, **info})}


def refuse_foreign(path: Path) -> None:
    """A new run needs an empty folder, or one in which an earlier `create` was killed."""
    names = {entry.name for entry in path.iterdir()} if path.is_dir() else set()
    if holds_run(path):
        raise RunDirectoryError(
            f"{path} holds a run already; continue it with `online-dpo resume {path}`, or choose another run.name"
        )
    ours = RUN_FILES | {"lock", SET_ASIDE.rstrip("/"), ANNOTATION, SFT}
    left_by_us = {name for name in names if name in ours or name.startswith(TEMPORARY)}
    if names - left_by_us or (names and "lock" not in names):
        raise RunDirectoryError(
            f"{path} is not empty and holds no run; choose another run.name or run.dir, or empty the folder"
        )


def expect_format(path: Path) -> None:
    """Look at the format version before anything else: another version may have other checksums, or none."""
    try:
        version = json.loads((path / "run.json").read_bytes())["format_version"]
    except (FileNotFoundError, NotADirectoryError):
        raise RunDirectoryError(
            f"{path} is not a run directory: it has no run.json; give the folder that `online-dpo run` printed"
        ) from None
    except (ValueError, KeyError, TypeError):
        version = None  # damaged: the checksum will say so
    if isinstance(version, int) and version != FORMAT_VERSION:
        raise RunDirectoryError(
            f"{path} has format version {version} and this program reads version {FORMAT_VERSION}; use the release "
            f"of online-dpo that wrote it, or start a new run with another run.name"
        )
    if not holds_run(path):
        raise RunDirectoryError(
            f"{path} is not a run directory: it has no run.sha256, as when the start of a run was interrupted; start "
            f"it again with `online-dpo run`, or restore the file from a backup"
        )
