"""Reads YAML that may be anything: bounded in size, depth and aliases, so that anything else is an error."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from online_dpo.errors import ConfigError
from online_dpo.text_files import foreign_encoding, not_utf8, shown, unusable_path

MAX_BYTES = 1_000_000
MAX_DEPTH = 50  # OmegaConf takes about ten frames of Python's thousand for each level
MAX_NODES = 100_000


def read_mapping(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; interpolations stay as they are.

    Raises:
        ConfigError: there is no such file, or it holds no mapping.
    """
    name = f"config file {shown(path)}"
    text = _read_text(path, name)
    try:
        expect_moderate(text)
        raw = OmegaConf.to_container(OmegaConf.load(io.StringIO(text)), resolve=False)
    # Besides YAML's and OmegaConf's own errors, values raise ValueError (integers of 5 000 digits) and TypeError.
    except Exception as error:
        raise ConfigError(f"{name} is not readable YAML: {reason(error)}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{name} holds {type(raw).__name__}; it must be a mapping of sections")
    return {str(key): value for key, value in raw.items()}


def expect_moderate(text: str) -> None:
    """Refuse YAML that is deeper or larger than any config, aliases counted as what they stand for.

    Raises:
        ConfigError: it is.
        yaml.YAMLError: it is no YAML.
    """
    anchors: dict[str, tuple[int, int]] = {}
    # Of each collection that is open: its anchor, its nodes so far, and its depth so far.
    unfinished: list[tuple[str | None, int, int]] = [(None, 0, 0)]

    def add(anchor: str | None, nodes: int, depth: int) -> None:
        if anchor is not None:
            anchors[anchor] = (nodes, depth)
        outer, before, deepest = unfinished[-1]
        unfinished[-1] = (outer, before + nodes, max(deepest, depth + 1))
        if before + nodes > MAX_NODES:
            raise ConfigError(f"it has more than {MAX_NODES} values; write data into a file of its own and name that")
        if len(unfinished) + depth > MAX_DEPTH:
            raise ConfigError(f"it is nested more than {MAX_DEPTH} levels deep; no section is")

    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            unfinished.append((event.anchor, 1, 0))
            if len(unfinished) > MAX_DEPTH:
                raise ConfigError(f"it is nested more than {MAX_DEPTH} levels deep; no section is")
        elif isinstance(event, yaml.CollectionEndEvent):
            add(*unfinished.pop())
        elif isinstance(event, yaml.ScalarEvent):
            add(event.anchor, 1, 0)
        elif isinstance(event, yaml.AliasEvent):
            add(None, *anchors.get(event.anchor or "", (1, 0)))


def reason(error: BaseException) -> str:
    """Somebody else's error in a line of ours."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply, or refers to itself"
    if str(error) == "Cannot merge incompatible container types":
        return "an override gives a list where the file has a mapping, or a mapping where it has a list"
    own = str(error).split("\n    full_key:")[0]  # OmegaConf adds where it stood in its own terms
    return " ".join(own.split())[:300] or type(error).__name__


def _read_text(path: Path, name: str) -> str:
    why = unusable_path(path)
    if why is not None:
        raise ConfigError(f"{name} {why}; give the path of a YAML file, such as configs/reviews.yaml")
    try:
        if path.is_dir():
            raise ConfigError(f"{name} is a folder; give a YAML file in it, such as configs/reviews.yaml")
        if path.exists() and not path.is_file():
            raise ConfigError(f"{name} is no regular file but a pipe, device or socket; write the config into a file")
        if not path.exists():
            raise ConfigError(f"{name} does not exist; give the path of a YAML file, such as configs/reviews.yaml")
        with path.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(
            f"{name} cannot be read ({error.strerror}); check the path and your right to read it"
        ) from None
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{name} has more than {MAX_BYTES} bytes; write data into a file of its own and name that")
    foreign = foreign_encoding(data[:64])
    if foreign is not None:
        raise ConfigError(f"{name} {foreign}")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{name}, line {line}, {not_utf8(error)}") from None
