"""The commits of one round of a run directory (DESIGN section 4).

pyarrow is imported where records are read or written, so that `online-dpo status` answers at once.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from online_dpo.store.files import Files
from online_dpo.store.history import History, canonical_json, manifest_key

if TYPE_CHECKING:
    from online_dpo.store.schemas import Record

    R = TypeVar("R", bound=Record)

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)*(?<!\.sha256)")


class RoundStore:
    """The commits of one round. Names are relative to its folder, without an extension: `completions/shard-00000`.

    All `get_*` raise CorruptionError where a file is missing or altered, or nothing was committed under the name.
    All `put_*` raise ValueError where the name is committed already, or the round is finished.
    """

    def __init__(self, index: int, files: Files, history: History) -> None:
        self.index = index
        self._files = files
        self._commits = history.commits(index)

    def has(self, name: str) -> bool:
        return self._commits.has(name)

    def names(self, prefix: str = "") -> list[str]:
        """Committed names that begin with `prefix`, sorted."""
        return self._commits.names(prefix)

    def put_records(
        self,
        name: str,
        records: Sequence[Record],
        *,
        beside: Mapping[str, Any] | None = None,
        tables: Mapping[str, Sequence[Record]] | None = None,
    ) -> None:
        """Commit records of one kind as `<name>.parquet`, and in the same commit what belongs to them.

        Args:
            name: of the commit.
            records: of one kind.
            beside: JSON values, as `<name>.json`.
            tables: records of other kinds, each as `<name>.<its name>.parquet`.
        """
        from online_dpo.store.tables import to_parquet  # 0.3 s, and `status` needs none

        values = {} if beside is None else {".json": canonical_json(beside)}
        further = {f".{kind}.parquet": to_parquet(found) for kind, found in (tables or {}).items()}
        self._put(name, {".parquet": to_parquet(records), **values, **further})

    def get_records(self, name: str, kind: type[R], *, table: str | None = None, limit: int | None = None) -> list[R]:
        """All records of a commit or of one of its further tables, or the first `limit`."""
        from online_dpo.store.tables import from_parquet  # 0.3 s, and `status` needs none

        extension = ".parquet" if table is None else f".{table}.parquet"
        return from_parquet(self._get(name, extension), kind, limit=limit)

    def has_table(self, name: str, table: str) -> bool:
        """Whether a commit has a further table."""
        return f"{name.rpartition('/')[2]}.{table}.parquet" in self._commits.paths(name)

    def put_json(self, name: str, value: Mapping[str, Any]) -> None:
        """Commit JSON values as `<name>.json`; NaN and infinity are refused with a ValueError."""
        self._put(name, {".json": canonical_json(value)})

    def get_json(self, name: str) -> dict[str, Any]:
        return json.loads(self._get(name, ".json"))

    def put_files(self, name: str, files: Mapping[str, bytes]) -> None:
        """Commit a folder: path inside it -> content. All of it is there, or none."""
        if not files or not all(_NAME.fullmatch(path) for path in files):
            raise ValueError(f"{name} cannot hold the files {sorted(files)}")
        self._put(name, {f"/{path}": data for path, data in files.items()})

    def get_files(self, name: str) -> dict[str, bytes]:
        prefix = f"{name.rpartition('/')[2]}/"
        return {path.removeprefix(prefix): data for path, data in self._commits.get(name).items()}

    def digests(self, name: str) -> dict[str, str]:
        """File (relative to the run directory) -> sha256 that was committed with it."""
        return self._commits.digests(name)

    def fingerprint(self) -> str | None:
        """sha256 of the manifest, and so of everything in the round; None where the round is not finished."""
        key = manifest_key(self.index)
        return self._files.digest(key) if self._files.exists(key) else None

    def remove(self, name: str) -> None:
        """Undo a commit; after a kill on the way it counts as absent."""
        self._expect_unfinished(name)
        self._commits.remove(name)

    def prune_checkpoints(self, keep: int = 1) -> None:
        """Remove all but the newest `keep` of `learner/step-*`."""
        steps = sorted(self.names("learner/step-"), key=lambda name: (len(name), name))
        for name in steps[: len(steps) - keep]:
            self.remove(name)

    def state(self) -> dict[str, Any]:
        """What `finish_round` was given; only for finished rounds."""
        return self.get_json("state")

    def _put(self, name: str, contents: Mapping[str, bytes]) -> None:
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} cannot be the name of a commit")
        self._expect_unfinished(name)
        last = name.rpartition("/")[2]
        self._commits.put(name, {last + ending: data for ending, data in contents.items()})

    def _get(self, name: str, extension: str) -> bytes:
        return self._commits.get_file(name, name.rpartition("/")[2] + extension)

    def _expect_unfinished(self, name: str) -> None:
        if self._files.exists(manifest_key(self.index)):
            raise ValueError(f"{name} of round {self.index} cannot change: the round is finished")
