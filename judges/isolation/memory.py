"""How much memory there is, and how much a process takes."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
"""Where a container's limit is: the second and the first version of control groups."""


def resident_bytes(pid: int) -> int:
    """Resident memory of a process; 0 where it cannot be told."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_BYTES
    except (OSError, IndexError, ValueError):
        return 0


def limit_bytes(limit_gb: float | None) -> int:
    """A section's `memory_limit_gb` in bytes; half of the memory that there is where it sets none."""
    return total_bytes() // 2 if limit_gb is None else int(limit_gb * 1e9)


def total_bytes() -> int:
    """Memory of this machine, or of the container where that has less."""
    total = os.sysconf("SC_PHYS_PAGES") * _PAGE_BYTES
    for path in _LIMITS:
        with contextlib.suppress(OSError, ValueError):  # no such limit, or "max"
            total = min(total, int(Path(path).read_text()))
    return total
