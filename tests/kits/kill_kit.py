"""Runs that are killed at every change of the disk, and continued."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any

from crashing_disk import CrashingDisk
from loop_kit import FakeStages, shard_of
from loop_runs import Run, comparable, tree

from online_dpo.loop.stages import Event
from online_dpo.loop.updates import newest_checkpoint
from online_dpo.store.files import TEMPORARY
from online_dpo.store.run_store import RunStore
from online_dpo.store.tables import from_parquet
from online_dpo.types import Completion, Verdict

WORK = ("sample", "write", "judge", "repeat", "reference_logps", "step")


class Camera(CrashingDisk):
    """Keeps what a process would leave behind that was killed before some change of the disk, from one run.

    States that differ in temporary files alone are one picture: a new process begins by removing these, and
    `test_store_crashes` kills at every change of theirs.
    """

    ALIKE = re.compile(r"(?<=shard-)\d+|(?<=step-)\d+")

    def __init__(self, root: Path) -> None:
        super().__init__(root, crash_at=None, power_cut=False)
        self.pictures: list[dict[str, bytes]] = []
        self.picture_kinds: list[object] = []
        self._seen: set[str] = set()

    def _count(self, operation: str, path: Any) -> None:
        super()._count(operation, path)
        self._take(tree(self.root), "before")

    def _write(self, descriptor: int, data: Any) -> int:
        path = self._paths.get(descriptor)
        num_bytes = super()._write(descriptor, data)
        if path is not None:
            files, name = tree(self.root), path.relative_to(self.root).as_posix()
            self._take({**files, name: files[name][: -len(data) // 2]}, "within")  # only half of the bytes arrived
        return num_bytes

    def _take(self, files: dict[str, bytes], when: str) -> None:
        lasting = sorted((name, data) for name, data in files.items() if TEMPORARY not in name)
        digest = sha256(repr(lasting).encode()).hexdigest()
        if digest not in self._seen:
            self._seen.add(digest)
            self.pictures.append(files)
            self.picture_kinds.append((when, self.kinds[-1]))


def event_kinds(events: Sequence[Event]) -> list[object]:
    """What each event is, and what the one before it was, in which round: shards and steps are alike."""
    kinds = ["", *(event.kind for event in events)]
    return [(event.round_index, *pair) for event, pair in zip(events, pairwise(kinds), strict=True)]


def restore(path: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)


def work_left(path: Path, work: list[str]) -> Counter[str]:
    """The calls of a whole run that are still to be made, by the names of what is committed."""
    left = Counter(work)
    if not RunStore.exists(path):
        return left
    references = [call for call in work if call.startswith("reference_logps")]
    with RunStore.read(path) as store:
        num_finished = len(store.finished_rounds())
        for part in map(store.round, range(num_finished + 2)):  # the last one may be sampled ahead
            for name in (name for name in part.names() if "completions/" in name):
                shard = shard_in(part.get_files(name)[f"{Path(name).name}.parquet"])
                del left[f"sample {shard}"]
                for judge, verdicts in {"reward": "verdicts", "gold": "verdicts-gold"}.items():
                    if part.has(name.replace("completions", verdicts)):
                        del left[f"judge {judge} {shard}"]
                    repeats = name.replace("completions", verdicts.replace("verdicts", "repeats"))
                    if part.has(repeats):
                        asked = dict.fromkeys(v.prompt_id for v in part.get_records(repeats, Verdict))
                        del left[f"repeat {judge} {shard.split()[0]} {','.join(asked)}"]
            for name in part.names("candidates-"):
                ids, source = part.get_json(name)["prompt_ids"], name.removeprefix("candidates-").partition("/")[0]
                del left[f"write {source} {','.join(ids)}"]
                # The policy's critiques and revisions are samples of `prompt/sample`.
                asked = [call for call in left if call.startswith("sample ") and "/" in call]
                for call in asked if source == "own" else ():
                    if {name.rpartition("/")[0] for name in call.split()[2].split(",")} <= set(ids):
                        del left[call]
            if any(part.has(name) for name in ("pairs", "labelled", "demonstrations")):
                left[references[part.index]] -= 1
            num_steps = 0
            if (checkpoint := newest_checkpoint(part)) is not None:
                num_steps = json.loads(part.get_files(checkpoint)["progress.json"])["tally"]["num_steps"]
            for call in [call for call in left if call.startswith(f"step {part.index} ")]:
                if part.index < num_finished or int(call.split()[-1]) < num_steps:
                    del left[call]
    return +left


def go_on_and_compare(
    run: Run,
    work: list[str],
    expected: dict[str, Any],
    when: str,
    make: Callable[[Run], FakeStages] = lambda run: FakeStages(run.config),
) -> None:
    """Let a new process finish the run; it must do exactly what is left, and end as if there had been no kill."""
    left, stages = work_left(run.path, work), make(run)
    run.go_on(stages)
    assert Counter(stages.tape.calls(*WORK)) == left, when
    # Weights are pushed where something is left to sample from them, and nowhere else.
    pushed = [call.split()[1] for call in stages.tape.calls("push")]
    assert pushed == sorted({call.split()[1].removeprefix("v") for call in left if call.startswith("sample ")}), when
    assert comparable(run.path) == expected, when
    with RunStore.read(run.path) as store:
        store.verify()


def shard_in(parquet: bytes) -> str:
    return shard_of(from_parquet(parquet, Completion))
