"""The run directory of DESIGN section 4: what was committed survives any kill, and damage never goes unseen.

One process writes (`RunStore.create`, `RunStore.open`); any number look on (`RunStore.read`). Every read compares
with the sha256 that was committed with the data.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Container, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from online_dpo.errors import CorruptionError, RunDirectoryError
from online_dpo.store.commits import Commits
from online_dpo.store.files import TEMPORARY, Files, FolderLock, expect_writable
from online_dpo.store.history import History, canonical_json, round_folder
from online_dpo.store.metrics_file import MetricsFile
from online_dpo.store.rewinding import complete_rewind, delete_set_aside, expect_no_rewind, rewind
from online_dpo.store.round_store import RoundStore

FORMAT_VERSION = 3
_RUN_FILES = {"config.yaml", "run.json"}


class RunStore:
    """A run directory; a context manager that gives the lock back. Use `create`, `open` or `read`.

    Attributes:
        path: the folder.
        config_yaml: the resolved config that the run was started or last continued with.
        info: what `create` was given.
    """

    path: Path
    config_yaml: str
    info: dict[str, Any]

    def __init__(self, path: Path, lock: FolderLock | None) -> None:
        self.path = path
        self._lock = lock
        self._files = Files(path, writable=lock is not None)
        self._history = History(self._files)
        self._commits = Commits(self._files, "", self._settings_remedy)
        self._metrics = MetricsFile(self._files, self._restart_remedy)

    @classmethod
    def exists(cls, path: Path) -> bool:
        """Whether the folder holds a run. A `create` that was killed does not count and may be repeated."""
        return any((path / f"{name}.sha256").is_file() for name in ("run", "amendment"))

    @classmethod
    def expect_room(cls, path: Path) -> None:
        """See whether `create` could begin here, as far as can be told without leaving anything.

        Raises:
            RunDirectoryError: the folder holds something else, or cannot be written.
        """
        _refuse_foreign(path)
        expect_writable(path)

    @classmethod
    def create(cls, path: Path, *, config_yaml: str, info: Mapping[str, Any]) -> Self:
        """Begin a run directory.

        Args:
            path: a folder that is missing or empty.
            config_yaml: the resolved config, without secrets.
            info: JSON values for `run.json`: package versions, base-model fingerprint.

        Raises:
            RunDirectoryError: the folder holds something else, is in use, or cannot be written.
        """
        _refuse_foreign(path)  # before the lock, so as to leave nothing in someone else's folder
        store = cls(path, FolderLock(path))
        try:
            _refuse_foreign(path)  # another process may have been faster to the lock
            store._files.remove_temporaries()
            store._commits.put("run", _run_files(config_yaml, info))
            store._load()
        except BaseException:
            store.close()
            raise
        return store

    @classmethod
    def open(cls, path: Path) -> Self:
        """Take a run directory in order to continue it, and complete what a kill left half done.

        Raises:
            RunDirectoryError: not a run directory, of another format version, in use, or not writable.
            CorruptionError: settings, manifests and `latest` do not fit each other. Data is checked when read,
                and all of it by `verify`.
        """
        _expect_format(path)
        store = cls(path, FolderLock(path))
        try:
            complete_rewind(store._files, store._history)
            store._check()
            store._files.remove_temporaries()
            store._complete_amendment()
            store._history.recover()
        except BaseException:
            store.close()
            raise
        return store

    @classmethod
    def read(cls, path: Path) -> Self:
        """Look at a run directory, also while another process writes; takes no lock and changes nothing.

        Raises:
            RunDirectoryError, CorruptionError: as for `open`.
        """
        _expect_format(path)
        store = cls(path, None)
        expect_no_rewind(store._files)
        try:
            store._check()
        except CorruptionError:
            store._check()  # the writer may have amended the config or finished a round between two of our reads
        return store

    @classmethod
    def rewind(cls, path: Path, *, num_kept: int | None, delete: bool = False) -> Path | None:
        """Take the rounds after the first `num_kept` off a run, and write `latest` again.

        The rounds that stay must be whole; the others and `latest` may be damaged.

        Args:
            path: of the run directory.
            num_kept: finished rounds that stay; None = nothing is taken off.
            delete: delete everything that was ever set aside, this time included.

        Returns:
            Where the rounds lie now; None where nothing was taken off, or it was deleted.

        Raises:
            RunDirectoryError: as for `open`; there are not so many rounds, or no round can be played after them.
            CorruptionError: what would stay is damaged.
        """
        _expect_format(path)
        with cls(path, FolderLock(path)) as store:
            store._files.remove_temporaries()
            store._load()
            folder = rewind(store._files, store._history, store._metrics, num_kept)
            if delete:
                delete_set_aside(store._files)
            return None if folder is None or delete else path / folder

    def close(self) -> None:
        """Give the lock back; the store can only read from then on."""
        self._files.writable = False
        if self._lock is not None:
            self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def amend(self, *, config_yaml: str) -> None:
        """Replace the config on resume, where only fields changed that may. `open` completes it after a kill."""
        if config_yaml != self.config_yaml:
            # config.yaml, run.json and their checksum cannot change in one instant: commit the new ones under
            # another name first, from where the change can be completed by whoever comes next.
            new = _run_files(config_yaml, self.info)
            self._commits.put("amendment", {f"amendment/{name}": data for name, data in new.items()})
            self._complete_amendment()
            self._load()

    def verify(self) -> None:
        """Check every committed file.

        Raises:
            CorruptionError: names the first file that is missing or altered, and the remedy.
        """
        self._check()
        for index in range(self._history.num_finished() + 1):
            self._history.check_round(index)

    def finished_rounds(self) -> list[int]:
        """Indices of the finished rounds: 0, 1, ... without a gap."""
        return list(range(self._history.num_finished()))

    def round(self, index: int) -> RoundStore:
        """A finished round, or the one after it.

        Raises:
            ValueError: there is no such round yet.
        """
        num_finished = self._history.num_finished()
        if not 0 <= index <= num_finished:
            raise ValueError(f"round {index} of {self.path} cannot be used: {num_finished} rounds are finished")
        return RoundStore(index, self._files, self._history)

    def finish_round(self, index: int, state: Mapping[str, Any]) -> None:
        """Commit a round's state and seal the round; nothing can be added to it afterwards.

        Args:
            index: the first unfinished round.
            state: JSON values; everything that the next round needs and no other commit holds.
        """
        current = self.round(index)
        if current.has("state"):
            current.remove("state")  # of an attempt that was killed before the seal; its state may differ
        current.put_json("state", state)
        self._history.seal(index)

    def prune_optimizer(self, keep_last: int = 1) -> None:
        """Remove `learner/final` and `learner/step-*` of all but the last finished rounds (`run.keep_optimizer`)."""
        if keep_last < 1:
            raise ValueError(f"keep_last is {keep_last}; the last round's optimizer state is needed to continue")
        for index in self.finished_rounds()[:-keep_last]:
            commits = self._history.commits(index)
            for name in [*commits.names("learner/final"), *commits.names("learner/step-")]:
                commits.remove(name)
            commits.remove_uncommitted("learner/")  # of a removal that was killed

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        """Add a line to `metrics.jsonl`; it outlives this process at once. Values are JSON; NaN is refused."""
        self._metrics.append(record)

    def metrics(self) -> list[dict[str, Any]]:
        """Every complete line of `metrics.jsonl`; the last one may be in the making.

        Raises:
            CorruptionError: a line is not JSON.
        """
        return self._metrics.records()

    def metrics_position(self) -> dict[str, Any]:
        """`{"bytes": n, "sha256": of these n bytes}`: where the file ends now, made durable first."""
        return self._metrics.position()

    def check_metrics(self, position: Mapping[str, Any]) -> None:
        """Compare the beginning of `metrics.jsonl` with a committed position.

        Raises:
            CorruptionError: the part before the position is shorter than it was, or altered.
        """
        self._metrics.check(position)

    def truncate_metrics(self, position: Mapping[str, Any] | None, *, keep: Container[str] = ()) -> None:
        """Cut `metrics.jsonl` back to a committed position; None = nothing was committed yet.

        Args:
            position: from `metrics_position`.
            keep: kinds of records that stay even behind the position: they are about work that is not done again.

        Raises:
            CorruptionError: as for `check_metrics`.
        """
        self._metrics.truncate(position, keep)

    def _check(self) -> None:
        self._load()
        self._history.check_chain()

    def _load(self) -> None:
        """Read and check config.yaml and run.json, or the ones that are to replace them."""
        name = "amendment" if self._commits.has("amendment") else "run"
        files = {path.removeprefix("amendment/"): data for path, data in self._commits.get(name).items()}
        if set(files) != _RUN_FILES:
            self._commits.corrupt(f"{name}.sha256", "does not list config.yaml and run.json")
        info = json.loads(files["run.json"])
        del info["format_version"], info["config_sha256"]  # for people and for `_expect_format`
        self.config_yaml, self.info = files["config.yaml"].decode(), info

    def _complete_amendment(self) -> None:
        if self._commits.has("amendment"):
            files = {path.removeprefix("amendment/"): data for path, data in self._commits.get("amendment").items()}
            if self._commits.has("run"):
                self._files.delete("run.sha256")
            self._commits.put("run", files)
            self._commits.remove("amendment")
        for key in self._files.keys("amendment/"):
            self._files.delete(key)  # of an amendment that was killed before it was committed, or while removed

    def _settings_remedy(self) -> str:
        return (
            "restore it from a backup (config.yaml is not for editing: give changed settings to `online-dpo resume "
            f"{self.path} section.field=value`), {self._restart_remedy().removeprefix('restore it from a backup, ')}"
        )

    def _restart_remedy(self) -> str:
        num_finished = self._history.num_finished()
        if not num_finished:
            return f"restore it from a backup, or move {self.path} away and start again: no round is finished"
        adapter = self.path / round_folder(num_finished - 1) / "adapter"
        return f"restore it from a backup, or start a new run that continues its policy, with model.adapter={adapter}"


def _run_files(config_yaml: str, info: Mapping[str, Any]) -> dict[str, bytes]:
    data = config_yaml.encode()
    own = {"format_version": FORMAT_VERSION, "config_sha256": hashlib.sha256(data).hexdigest()}
    if own.keys() & info.keys():
        raise ValueError(f"info must not have the keys {sorted(own)}")
    return {"config.yaml": data, "run.json": canonical_json({**own, **info})}


def _refuse_foreign(path: Path) -> None:
    """A new run needs an empty folder, or one in which an earlier `create` was killed."""
    names = {entry.name for entry in path.iterdir()} if path.is_dir() else set()
    if RunStore.exists(path):
        raise RunDirectoryError(
            f"{path} holds a run already; continue it with `online-dpo resume {path}`, or choose another run.name"
        )
    left_by_us = {name for name in names if name in _RUN_FILES | {"lock"} or name.startswith(TEMPORARY)}
    if names - left_by_us or (names and "lock" not in names):
        raise RunDirectoryError(
            f"{path} is not empty and holds no run; choose another run.name or run.dir, or empty the folder"
        )


def _expect_format(path: Path) -> None:
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
    if not RunStore.exists(path):
        raise RunDirectoryError(
            f"{path} is not a run directory: it has no run.sha256, as when the start of a run was interrupted; start "
            f"it again with `online-dpo run`, or restore the file from a backup"
        )
