"""The run directory of DESIGN section 4: what was committed survives any kill, and damage never goes unseen.

One process writes (`RunStore.create`, `RunStore.open`); any number look on (`RunStore.read`). Every read compares
with the sha256 that was committed with the data.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Container, Mapping
from pathlib import Path
from typing import Any, Self

from online_dpo.errors import CorruptionError, RunDirectoryError
from online_dpo.store.commits import Commits
from online_dpo.store.damage import Damage, put_accepted, read_accepted
from online_dpo.store.files import Files, FolderLock, expect_writable
from online_dpo.store.history import History, round_folder
from online_dpo.store.metrics_file import METRICS, MetricsFile
from online_dpo.store.rewinding import (
    SET_ASIDE,
    complete_rewind,
    delete_set_aside,
    expect_no_rewind,
    next_folder,
    rewind,
    set_rounds_aside,
)
from online_dpo.store.round_store import RoundStore
from online_dpo.store.run_format import ANNOTATION, RUN_FILES, expect_format, holds_run, refuse_foreign, run_files


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
        return holds_run(path)

    @classmethod
    def expect_room(cls, path: Path) -> None:
        """See whether `create` could begin here, as far as can be told without leaving anything.

        Raises:
            RunDirectoryError: the folder holds something else, or cannot be written.
        """
        refuse_foreign(path)
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
        refuse_foreign(path)  # before the lock, so as to leave nothing in someone else's folder
        store = cls(path, FolderLock(path))
        try:
            refuse_foreign(path)  # another process may have been faster to the lock
            store._files.remove_temporaries()
            store._commits.put("run", run_files(config_yaml, info))
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
        expect_format(path)
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
        expect_format(path)
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
        expect_format(path)
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

    def __exit__(self, *_: object) -> None:
        self.close()

    def amend(self, *, config_yaml: str) -> None:
        """Replace the config on resume, where only fields changed that may. `open` completes it after a kill."""
        if config_yaml != self.config_yaml:
            # Two files and their checksum cannot change in one instant: commit the new ones under another name first.
            new = run_files(config_yaml, self.info)
            self._commits.put("amendment", {f"amendment/{name}": data for name, data in new.items()})
            self._complete_amendment()
            self._load()

    def verify(self) -> None:
        """Check every committed file.

        Raises:
            CorruptionError: names the first file that is missing or altered, and the remedy.
        """
        self._check()
        for index in range(self._history.num_finished() + 2):
            self._history.check_round(index)

    def damages(self) -> list[Damage]:
        """Every damaged file of the finished rounds that was not accepted, in the order of the rounds."""
        return list(self._history.damages(self._history.num_finished()))

    def copies(self, damage: Damage) -> list[str]:
        """Whole files of the run that hold, by what was recorded, the same bytes as a damaged one."""
        return self._history.copies(damage, self._history.num_finished())

    def accepted(self) -> list[str]:
        """Files whose damage was accepted, relative to the run directory."""
        return sorted(read_accepted(self._files))

    def accept(self, keys: Collection[str]) -> None:
        """Accept damage to files that no later round reads; both digests of each are recorded in `accepted.json`.

        Raises:
            RunDirectoryError: a file is not damaged, or a later round reads it; nothing is accepted then.
        """
        damages = {damage.key: damage for damage in self.damages()}
        for key in keys:
            if key not in damages:
                raise RunDirectoryError(
                    f"--accept is {key}, which is no damaged file of a finished round of {self.path}; give one that "
                    f"`online-dpo verify {self.path}` names"
                )
            if not damages[key].is_acceptable:
                raise RunDirectoryError(f"--accept is {key}, and {damages[key].consequence}; {damages[key].remedy}")
        put_accepted(self._files, [damages[key] for key in keys])

    def set_aside(self) -> Path:
        """Move a run without a finished round into a folder of its own, from where it could be continued.

        `create` can then use the run directory. After a kill on the way this can be repeated.

        Raises:
            ValueError: a round is finished.
        """
        if self._history.num_finished():
            raise ValueError(f"{self.path} has finished rounds; `rewind` takes them off")
        folder, names = next_folder(self._files), {"run.sha256", *RUN_FILES}
        for name in sorted(names):
            self._files.put(folder + name, self._files.get(name))
        set_rounds_aside(self._files, self._history, folder)
        self._files.delete(METRICS)  # its lines were moved
        names |= {"lock", SET_ASIDE.rstrip("/"), ANNOTATION}  # these stay
        for name in sorted({entry.name for entry in self.path.iterdir()} - names):
            self._files.move(name, folder + name)
        self._files.delete("run.sha256")  # from here on there is no run
        return self.path / folder

    def finished_rounds(self) -> list[int]:
        """Indices of the finished rounds: 0, 1, ... without a gap."""
        return list(range(self._history.num_finished()))

    def round(self, index: int) -> RoundStore:
        """A finished round, the one after it, or the one after that, of which a part may be done ahead.

        Raises:
            ValueError: there is no such round yet.
        """
        num_finished = self._history.num_finished()
        if not 0 <= index <= num_finished + 1:
            raise ValueError(f"round {index} of {self.path} cannot be used: {num_finished} rounds are finished")
        return RoundStore(index, self._files, self._history)

    def unfinished_rounds(self) -> list[RoundStore]:
        """The first that is not finished, and the one after it, of which a part may be done ahead."""
        return [self.round(self._history.num_finished() + i) for i in range(2)]

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
        if set(files) != RUN_FILES:
            self._commits.corrupt(f"{name}.sha256", "does not list config.yaml and run.json")
        info = json.loads(files["run.json"])
        del info["format_version"], info["config_sha256"]  # for people and for `expect_format`
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
