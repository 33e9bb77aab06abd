"""A new run directory that begins with the rounds of another one, and with a part of the round after them.

The other run is only read, also while a process works on it: what is taken was committed. The new directory is filled
under another name and renamed when all of it is durable, so that it is whole or not there.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from online_dpo.errors import CorruptionError, RunDirectoryError
from online_dpo.store.commits import checksum_lines
from online_dpo.store.damage import copy_accepted
from online_dpo.store.files import TEMPORARY, Files, FolderLock, is_in_use
from online_dpo.store.history import History, manifest_key, round_folder
from online_dpo.store.metrics_file import METRICS
from online_dpo.store.round_store import RoundStore
from online_dpo.store.run_store import RunStore

FORKS = "forks"
"""The field of `run.json` that says where a run comes from: an entry for each fork, the oldest first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """What a fork takes of another run."""

    num_kept: int  # finished rounds, which are copied as they are
    wants: Callable[[str], bool]  # by the name of a commit of the round after them
    wants_record: Callable[[Mapping[str, Any]], bool]  # by a record of the metrics behind the kept rounds


def fork(
    source: RunStore,
    target: Path,
    taken: Taken,
    *,
    config_yaml: str,
    info: Mapping[str, Any],
    entry: Mapping[str, Any],
) -> list[str]:
    """Make a run directory from another one.

    Args:
        source: only read.
        target: must not exist.
        taken: of the source; `expect_forkable` goes before.
        config_yaml: the resolved config of the new run.
        info: for its `run.json`.
        entry: what `FORKS` is to say about this fork besides the source and the digests of what is taken: `round`,
            `from`, `changed` and `judges`, as in `docs/fork.md`.

    Returns:
        The names of the commits that were taken of the round after the kept ones.

    Raises:
        RunDirectoryError: the target exists or cannot be written, or the source went on while it was read.
        CorruptionError: what would be taken is damaged.
    """
    _expect_free(source.path, target)
    partial = target.with_name(TEMPORARY + target.name)
    if partial.exists():
        FolderLock(partial).release()  # raises where another process is filling it
        shutil.rmtree(partial)
    try:
        names = _fill(source, partial, taken, config_yaml, info, entry)
        with RunStore.read(partial) as found:
            found.verify()
        _expect_free(source.path, target)
        Files(target.parent, writable=True).move(partial.name, target.name)
    except CorruptionError as damage:
        if not is_in_use(source.path):
            raise
        raise RunDirectoryError(
            f"{source.path} went on while it was read, so not all of it was there ({damage}); fork it again"
        ) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return names


def expect_forkable(source: RunStore, num_kept: int) -> None:
    """See whether a run has what the round after its first `num_kept` begins with.

    Raises:
        RunDirectoryError: it has not.
    """
    history, number = History(Files(source.path, writable=False)), num_kept + 1
    num_finished = history.num_finished()
    if not 1 <= number <= num_finished + 1:
        raise RunDirectoryError(
            f"--round is {number} and {source.path} has {num_finished} finished rounds; choose one from 1 to "
            f"{num_finished + 1}"
        )
    if num_kept and history.lacks_optimizer(num_kept - 1):
        able = [1, *(index + 2 for index in range(num_finished) if not history.lacks_optimizer(index))]
        raise RunDirectoryError(
            f"--round is {number} and the optimizer state of round {num_kept} of {source.path} was not kept "
            f"(run.keep_optimizer: last), so round {number} cannot begin as it did; fork at round "
            f"{' or '.join(map(str, able))}"
        )


def former_judges(info: Mapping[str, Any], index: int) -> set[str]:
    """The judges of which another version, or none, had judged a round before a fork.

    Args:
        info: of the run, from `run.json`.
        index: of the round.
    """
    return {name for entry in info.get(FORKS, ()) if index < entry["round"] - 1 for name in entry["judges"]}


def describe_forks(info: Mapping[str, Any]) -> list[str]:
    """A sentence for each fork that a run comes from, the oldest first.

    Args:
        info: of the run, from `run.json`; whatever else has `FORKS` of it will do.
    """
    return [
        f"forked from {entry['run']} (run.json {entry['run_sha256'][:12]}) at round {entry['round']}, done anew from: "
        f"{entry['from']}; changed: {', '.join(_changes(entry)) or 'nothing'}"
        for entry in info.get(FORKS, ())
    ]


def _changes(entry: Mapping[str, Any]) -> Iterator[str]:
    yield from (f"{field} {_shown(old)} -> {_shown(new)}" for field, (old, new) in entry["changed"].items())


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _fill(
    source: RunStore, target: Path, taken: Taken, config_yaml: str, info: Mapping[str, Any], entry: Mapping[str, Any]
) -> list[str]:
    old = Files(source.path, writable=False)
    history = History(old)
    history.check_first(taken.num_kept)
    part = history.commits(taken.num_kept)
    names = [name for name in part.names() if taken.wants(name)]
    digests = {key: digest for name in names for key, digest in part.digests(name).items()}
    whole = {
        "run": source.path.resolve().name,
        "run_sha256": old.digest("run.json"),
        "kept_sha256": old.digest(manifest_key(taken.num_kept - 1)) if taken.num_kept else None,
        "taken_sha256": hashlib.sha256(checksum_lines(digests)).hexdigest(),
        "taken": names,
        **entry,
    }
    lineage = {FORKS: [*source.info.get(FORKS, ()), whole]}
    with RunStore.create(target, config_yaml=config_yaml, info={**info, **lineage}):
        new = Files(target, writable=True)
        for index in range(taken.num_kept):
            # Optimizer state that was removed is listed and not there; everything else is, or `verify` will say so.
            listed = json.loads(old.get(manifest_key(index)))["files"]
            for key in (manifest_key(index), *(round_folder(index) + path for path in listed)):
                if old.exists(key):
                    new.put(key, old.get(key))
        copy_accepted(old, new, lambda key: int(key.split("/")[1]) < taken.num_kept)
        if taken.num_kept:
            History(new).point_to_last(taken.num_kept)
        commits = History(new).commits(taken.num_kept)
        for name in names:
            commits.put(name, part.get(name))
        new.put(METRICS, _metrics(source, old, history, taken))
    return names


def _metrics(source: RunStore, old: Files, history: History, taken: Taken) -> bytes:
    """The metrics of the kept rounds, and the records about what is taken of the next one."""
    num_bytes = 0
    if taken.num_kept:
        position = RoundStore(taken.num_kept - 1, old, history).state()["metrics"]
        source.check_metrics(position)
        num_bytes = int(position["bytes"])
    source.metrics()  # raises where a line is damaged
    data = old.get(METRICS) if old.exists(METRICS) else b""
    *lines, _in_the_making = data[num_bytes:].split(b"\n")
    return data[:num_bytes] + b"".join(line + b"\n" for line in lines if taken.wants_record(json.loads(line)))


def _expect_free(source: Path, target: Path) -> None:
    if target.exists() or target.is_symlink():
        raise RunDirectoryError(f"NEW_DIR is {target}, which exists; name a new folder")
    if source.resolve() in target.resolve().parents:
        raise RunDirectoryError(f"NEW_DIR is {target}, which lies in the run that is forked; name a folder beside it")
