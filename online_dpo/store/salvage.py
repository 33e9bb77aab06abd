"""A look at what is left of a run directory whose rounds do not fit each other any more."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from online_dpo.errors import CorruptionError
from online_dpo.store.history import manifest_key
from online_dpo.store.round_store import RoundStore
from online_dpo.store.run_store import RunStore


class DamagedRun(RunStore):
    """A run that `RunStore.read` refuses, for people to look at: which rounds came of which is not vouched for.

    Every file is still compared with the sha256 that was committed with it.
    """

    @classmethod
    def look(cls, path: Path) -> Self:
        """Take what can be read.

        Raises:
            CorruptionError: the settings are damaged as well.
        """
        store = cls(path, None)
        store._load()
        return store

    def finished_rounds(self) -> list[int]:
        """Indices of the rounds that have a manifest; there may be gaps."""
        return [index for index in self._history.on_disk() if self._files.exists(manifest_key(index))]

    def round(self, index: int) -> RoundStore:
        """A round, finished or not."""
        return RoundStore(index, self._files, self._history)

    def unfinished_rounds(self) -> list[RoundStore]:
        """Those that have files and no manifest."""
        finished = self.finished_rounds()
        return [self.round(index) for index in self._history.on_disk() if index not in finished]


def read_what_is_left(path: Path) -> tuple[RunStore, str | None]:
    """A run for people to look at, and what is wrong with its rounds; None where nothing is.

    Raises:
        RunDirectoryError: there is no run, or one of another format version.
        CorruptionError: its settings are damaged.
    """
    try:
        return RunStore.read(path), None
    except CorruptionError as error:
        return DamagedRun.look(path), str(error)
