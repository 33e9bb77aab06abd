"""The models and prompts that ship with the package, so that a first run needs no download.

Light on purpose: no tensor library is imported here.
"""

from __future__ import annotations

from pathlib import Path

PREFIX = "embedded:"
"""What a config writes before the name of an embedded resource."""

_ROOT = Path(__file__).parent
_KNOWN = {
    "policy": "policy",
    "reward": "reward",
    "gold": "gold",
    "openings/train": "openings/train.jsonl",
    "openings/heldout": "openings/heldout.jsonl",
}


def resolve(name: str) -> Path:
    """The path of an embedded resource: a model's folder, or a JSON lines file of openings.

    Args:
        name: what follows `embedded:` in a config, for example `policy` or `openings/train`.

    Raises:
        LookupError: nothing is embedded under that name; the message lists the names there are.
    """
    if name not in _KNOWN:
        raise LookupError(f"nothing is embedded as {name!r}; the names are {', '.join(_KNOWN)}")
    return _ROOT / _KNOWN[name]


def path_of(source: str) -> Path:
    """The path that a config means: `embedded:NAME`, or a path of the file system with `~` for the home folder.

    Raises:
        LookupError: as `resolve`.
    """
    return resolve(source.removeprefix(PREFIX)) if source.startswith(PREFIX) else Path(source).expanduser()
