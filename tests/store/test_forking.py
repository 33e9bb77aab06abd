"""Forks over fakes: what is taken is not done again, what is done anew comes out as if nothing had been taken."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from crashing_disk import Crash, CrashingDisk
from kill_kit import WORK, work_left
from loop_kit import FakeStages
from loop_runs import Kill, Run, comparable, records, tree

from online_dpo.commands.preparing.fork_stages import STAGES, changed_judges, is_taken, is_taken_record
from online_dpo.store.forking import FORKS, Taken, describe_forks, fork
from online_dpo.store.run_store import RunStore


class Played(NamedTuple):
    """A finished run, and the calls that it made."""

    run: Run
    work: list[str]


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Played:
    """Three rounds, all optimizer states kept; only read."""
    run = Run.of(
        tmp_path_factory.mktemp("played"),
        run__rounds=3,
        run__keep_optimizer="all",
        verdicts={"repeated": 0.5},
        evaluation__judges={"gold": {"type": "python", "target": "none:none"}},
    )
    return Played(run, run.go_on().tape.calls(*WORK))


def forked(run: Run, target: Path, number: int, stage: str, *, changed: Sequence[str] = (), **overrides: Any) -> Run:
    new = Run.of(run.path.parent, target.name, **overrides) if overrides else run
    new = new.at(target)
    taken = Taken(
        num_kept=number - 1,
        wants=lambda name: is_taken(name, stage, changed=changed),
        wants_record=lambda record: is_taken_record(record, number - 1, stage),
    )
    entry = {"round": number, "from": stage, "changed": {f: [0, 1] for f in changed}, "judges": changed_judges(changed)}
    with pytest.MonkeyPatch.context() as patch, RunStore.read(run.path) as source:
        patch.setattr(os, "fsync", lambda descriptor: None)
        fork(source, target, taken, config_yaml=new.settings, info={}, entry=entry)
    return new


def without_settings(path: Path) -> dict[str, Any]:
    return {name: data for name, data in comparable(path).items() if name not in ("run.json", "run.sha256")}


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("number", [1, 2, 3])
def test_without_a_change_a_fork_is_the_run_again_and_does_only_what_it_should(
    number: int, stage: str, played: Played, tmp_path: Path
) -> None:
    """Every file of every round is equal, also those that were made anew. Would catch a cursor, optimizer state or
    reference that is not what the round began with, samples that are drawn again, and work that is done twice."""
    whole, work = played
    before = tree(whole.path)
    new, stages = forked(whole, tmp_path / "fork", number, stage), FakeStages(whole.config)
    copies = {n: d for n, d in tree(new.path).items() if n.startswith("rounds/") and int(n.split("/")[1]) < number - 1}
    assert copies == {name: data for name, data in before.items() if name in copies} and bool(copies) == (number > 1)
    left = work_left(new.path, work)
    of_round = {call.split()[0] for call in left if f"v{number - 1}" in call and "p" in call.split()[-1]}
    assert of_round - {"repeat"} == {"sample": {"sample", "judge"}, "judge": {"judge"}}.get(stage, set())
    assert sum(n for call, n in left.items() if "reference_logps" in call) == 4 - number - (stage == "learn")
    new.go_on(stages)
    assert Counter(stages.tape.calls(*WORK)) == left
    assert without_settings(new.path) == without_settings(whole.path)
    assert tree(whole.path) == before
    with RunStore.read(new.path) as store:
        store.verify()
        [entry] = store.info[FORKS]
        assert describe_forks(store.info) == [
            f"forked from run (run.json {entry['run_sha256'][:12]}) at round {number}, done anew from: {stage}; "
            f"changed: nothing"
        ]


def test_a_fork_that_crashes_at_any_instant_is_whole_or_not_there(played: Played, tmp_path: Path) -> None:
    """And the next attempt makes the same directory. Would catch a target that is renamed before it is filled."""
    whole, before = played.run, tree(played.run.path)
    home = tmp_path / "forks"

    def attempt(crash_at: int | None) -> CrashingDisk:
        target = home / "fork"
        taken = Taken(num_kept=1, wants=lambda name: is_taken(name, "pair", changed=()), wants_record=lambda _: False)
        with RunStore.read(whole.path) as source, CrashingDisk(home, crash_at=crash_at, power_cut=False) as disk:
            entry = {"round": 2, "from": "pair", "changed": {}, "judges": []}
            fork(source, target, taken, config_yaml=whole.settings, info={}, entry=entry)
        return disk

    home.mkdir()
    kinds = attempt(None).kinds
    expected = tree(home / "fork")
    for crash_at in {*range(0, len(kinds), 1 + len(kinds) // 10), *range(len(kinds) - 4, len(kinds))}:
        shutil.rmtree(home)
        home.mkdir()
        with suppress(Crash):
            attempt(crash_at)
        if not (home / "fork").exists():
            attempt(None)
        assert tree(home) == {f"fork/{name}": data for name, data in expected.items()}, (crash_at, kinds[crash_at])
    assert tree(whole.path) == before


def test_a_changed_round_is_the_same_whenever_the_fork_is_killed(played: Played, tmp_path: Path) -> None:
    """Other pairs from the same verdicts. Round 1 stays, and round 3 is sampled from the other policy."""
    changed = ["pairing.strategy"]
    other = {"run__rounds": 3, "verdicts": {"repeated": 0.5}, "pairing": {"strategy": "all_pairs"}}
    other["evaluation__judges"] = {"gold": {"type": "python", "target": "none:none"}}
    new = forked(played.run, tmp_path / "fork", 2, "pair", changed=changed, **other)
    number = len(new.go_on().events) // 3
    again = forked(played.run, tmp_path / "again", 2, "pair", changed=changed, **other)
    with pytest.raises(Kill):
        again.go_on(kill_at=number)
    again.go_on()
    assert comparable(again.path) == comparable(new.path)
    files, former = tree(new.path), tree(played.run.path)
    same = {name for name in files if name.startswith("rounds/") and files[name] == former.get(name)}
    assert {"rounds/00000/manifest.json", "rounds/00001/completions/shard-00000.parquet"} <= same
    assert {"rounds/00001/pairs.parquet", "rounds/00001/adapter/adapter_model.safetensors"}.isdisjoint(same)


def test_scores_of_a_judge_that_a_fork_changed_compare_with_none(played: Played, tmp_path: Path) -> None:
    """Would catch a gain that is the difference between the scores of two judges."""
    new = forked(played.run, tmp_path / "fork", 2, "judge", changed=["judge.target"])
    new.go_on()
    found = [line for line in records(new.path) if line["kind"] == "evaluated" and line["round"] > 0]
    assert found and all(line["judges"]["reward"]["gain"] is None for line in found)
    assert all(line["judges"]["gold"]["gain"] is not None for line in found)
    first = forked(played.run, tmp_path / "first", 1, "judge", changed=["judge.target"])  # its baseline is its own
    first.go_on()
    found = [line for line in records(first.path) if line["kind"] == "evaluated" and line["policy_version"] > 0]
    assert found and all(line["judges"]["reward"]["gain"] is not None for line in found)
