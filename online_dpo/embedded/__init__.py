"""The models and prompts that ship with the package, so that a first run needs no download.

Light on purpose: no tensor library is imported here.
"""

from __future__ import annotations

from pathlib import Path

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
