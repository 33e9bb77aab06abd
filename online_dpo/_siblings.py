"""Makes `actors` and `judges` mean this project's packages, whatever folder a user works in.

The two are top-level packages, and a user's own folder may well be called `judges`. It would win wherever the current
folder comes first on `sys.path`: under `python -m online_dpo`, in a user's script, and in every Ray worker, because
Ray puts the driver's current folder there. So whoever imports `online_dpo` first gets a finder for exactly these two
names. A user's judge file in such a folder is given by its path (`judges/mine.py:score`), which needs no import name.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

NAMES = ("actors", "judges")
ROOT = Path(__file__).resolve().parent.parent


class _SiblingFinder(importlib.abc.MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in NAMES:
            return None
        folder = ROOT / fullname
        return importlib.util.spec_from_file_location(
            fullname, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )


def pin() -> None:
    """Install the finder, once; in Ray workers too, whose set-up hook is a function of `online_dpo`.

    Raises:
        ImportError: another `actors` or `judges` was imported before `online_dpo`.
    """
    for name in NAMES:
        loaded = sys.modules.get(name)
        if loaded is None:
            continue
        # A namespace package (a folder without __init__.py) has no file.
        where = getattr(loaded, "__file__", None) or next(iter(getattr(loaded, "__path__", [])), "?")
        if ROOT / name not in Path(where).resolve().parents:
            raise ImportError(
                f"a package named {name} was imported from {where} before online_dpo; import online_dpo first"
            )
    if not any(isinstance(finder, _SiblingFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _SiblingFinder())
