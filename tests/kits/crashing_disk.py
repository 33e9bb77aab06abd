"""A disk that a test can stop: the process dies, or the power goes, at the n-th change beneath a folder."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

EVERY = pytest.mark.parametrize(
    "every", [False, pytest.param(True, marks=pytest.mark.exhaustive)], ids=["each kind", "every one"]
)
"""For tests that repeat themselves: once for each kind of instant in `make test`, at every one in `make test-all`."""


def instants(kinds: Sequence[object], *, every: bool) -> list[int]:
    """The numbers of the instants to crash at: all, or the first of each kind."""
    return [number for number, kind in enumerate(kinds) if every or kind not in kinds[:number]]


class Crash(BaseException):
    """The process is dead: no `except Exception` or `except OSError` of the code under test may run for it."""


class CrashingDisk:
    """Stands between the code and the disk while in a `with` block.

    Args:
        root: only what happens beneath it is counted.
        crash_at: the number of the change, from 0, instead of which the process dies; None = never.
        power_cut: also take back all that no fsync made durable: content of files, and names in folders. Otherwise
            everything that was handed to the kernel stays, and a write that is cut short leaves half of its bytes.
    """

    ALIKE = re.compile(r"(?<=shard-)\d+|(?<=step-)\d+|(?<=rounds/)\d+")
    """Changes whose paths differ in these alone are of one kind."""

    def __init__(self, root: Path, *, crash_at: int | None, power_cut: bool) -> None:
        self.root = root
        self.crash_at = crash_at
        self.power_cut = power_cut
        self.kinds: list[tuple[str, str]] = []
        """What every change was, and what the one before it was, without the numbers in `ALIKE`."""
        self._paths: dict[int, Path] = {}  # of open descriptors
        self._durable_bytes: dict[Path, int] = {}  # of files that have more than that
        self._undo: list[tuple[Path, Callable[[], None]]] = []  # what fsync of the path makes durable

    def __enter__(self) -> CrashingDisk:
        self._patch = pytest.MonkeyPatch()
        self._real = {name: getattr(os, name) for name in ("open", "write", "fsync")}
        self._patch.setattr(os, "open", self._open)
        self._patch.setattr(os, "write", self._write)
        self._patch.setattr(os, "fsync", self._fsync)
        for name in ("replace", "unlink", "mkdir", "rmdir", "truncate"):
            self._real[name] = getattr(os, name)
            self._patch.setattr(os, name, lambda path, *rest, name=name, **kw: self._change(name, path, *rest, **kw))
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        self._patch.undo()
        if kind is Crash and self.power_cut:
            for path, num_bytes in self._durable_bytes.items():
                if path.exists():
                    os.truncate(path, num_bytes)
            for _, undo in reversed(self._undo):
                undo()

    @property
    def num_changes(self) -> int:
        return len(self.kinds)

    def _count(self, operation: str, path: Any) -> None:
        if self.crash_at is not None and self.num_changes >= self.crash_at:
            raise Crash
        change = f"{operation} {self.ALIKE.sub('', Path(path).relative_to(self.root).as_posix())}"
        self.kinds.append((self.kinds[-1][1] if self.kinds else "", change))

    def _ours(self, path: Any) -> bool:
        return not isinstance(path, int) and f"{path}/".startswith(f"{self.root}/")

    def _open(self, path: Any, flags: int, *rest: Any, **kw: Any) -> int:
        existed = self._ours(path) and Path(path).exists()
        if self._ours(path) and flags & os.O_CREAT and (not existed or flags & os.O_TRUNC):
            self._count("open", path)
            if not existed:
                self._undo.append((Path(path).parent, lambda: Path(path).unlink(missing_ok=True)))
        descriptor = self._real["open"](path, flags, *rest, **kw)
        if self._ours(path):
            self._paths[descriptor] = Path(path)
        return descriptor

    def _write(self, descriptor: int, data: Any) -> int:
        path = self._paths.get(descriptor)
        if path is None:
            return self._real["write"](descriptor, data)
        self._durable_bytes.setdefault(path, path.stat().st_size)
        try:
            self._count("write", path)
        except Crash:
            self._real["write"](descriptor, bytes(data)[: len(data) // 2])
            raise
        return self._real["write"](descriptor, data)

    def _fsync(self, descriptor: int) -> None:
        path = self._paths.get(descriptor)
        if path is None:
            self._real["fsync"](descriptor)
            return
        if self.power_cut:  # for a mere kill, before and after an fsync are the same
            self._count("fsync", path)
        self._durable_bytes.pop(path, None)
        self._undo = [(durable_by, undo) for durable_by, undo in self._undo if durable_by != path]

    def _change(self, name: str, path: Any, *rest: Any, **kw: Any) -> None:
        if not self._ours(path):
            return self._real[name](path, *rest, **kw)
        self._count(name, path)
        source = Path(path)
        target = Path(rest[0]) if name == "replace" else source
        before = target.read_bytes() if target.is_file() else None
        self._real[name](path, *rest, **kw)
        if name == "replace":
            self._durable_bytes.pop(target, None)
            if source in self._durable_bytes:
                self._durable_bytes[target] = self._durable_bytes.pop(source)
        if name == "mkdir":
            self._undo.append((target.parent, lambda: shutil.rmtree(target, ignore_errors=True)))
        elif name != "rmdir":  # an empty folder that comes back does no harm
            durable_by = target if name == "truncate" else target.parent
            self._undo.append((durable_by, lambda: _restore(target, before)))
        return None


def _restore(path: Path, content: bytes | None) -> None:
    if content is None:
        path.unlink(missing_ok=True)
    elif path.parent.is_dir():
        path.write_bytes(content)
