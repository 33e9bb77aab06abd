"""Importing torch, transformers and vLLM, which is most of what the start of a run computes."""

from __future__ import annotations

import atexit
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

UNUSED = ("scipy", "sklearn")
"""What transformers imports wherever it is installed, for models and ways to generate that nothing here uses."""

_is_own = False


def own_process() -> None:
    """Say that this process runs nothing but us, so that the libraries which we import need not serve anybody else."""
    global _is_own
    _is_own = True


@contextmanager
def quick_imports() -> Iterator[None]:
    """Import large libraries in here: it takes a third less time.

    There is no garbage collection meanwhile, because what an import makes lives on; later collections leave it out,
    too. In a process of our own, what is `UNUSED` cannot be imported in here, and can be afterwards.
    """
    was_enabled = gc.isenabled()
    hidden = [name for name in UNUSED if _is_own and name not in sys.modules]
    gc.disable()
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None stands for a module that is absent
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]
        if was_enabled:
            if not gc.get_freeze_count():
                # What is still frozen when the process ends is never freed, and some libraries print that as a leak.
                atexit.register(gc.unfreeze)
            gc.freeze()
            gc.enable()
