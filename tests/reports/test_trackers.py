"""Trackers get everything once, whatever is killed and resumed, and none of them can stop or change a run."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from config_kit import BASE
from loop_runs import Kill, Run, records

from online_dpo.commands.preparing.fitting import check_machine
from online_dpo.config.loading import dump_config, load_config
from online_dpo.config.run import LoggingSection
from online_dpo.errors import ConfigError
from online_dpo.reports.trackers import registry, worker
from online_dpo.store.run_store import RunStore

PACKAGE = """
import json
from online_dpo import Tracker

class Lines(Tracker):
    def __init__(self, file="tracked.jsonl"):
        self.name = file
    def start(self, run):
        self.file = (run.run_dir / self.name).open("a", buffering=1)
        self.write("start", run.name, run.id, run.num_sent, run.config["run"]["rounds"])
    def log(self, figures, axis, position):
        self.write("log", axis, position, figures)
    def table(self, table, round_number):
        self.write("table", table.name, round_number, table.columns, table.rows)
    def finish(self, summary):
        self.write("finish", summary)
    def write(self, *said):
        self.file.write(json.dumps(said) + "\\n")

class Needs(Tracker):
    requires = "a_package_that_nobody_has"
"""
"""Somebody's package with a tracker."""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The package as pip leaves it: a module, and its entry points beside it."""
    site = tmp_path / "site"
    info = site / "their_trackers-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "their_trackers.py").write_text(PACKAGE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-trackers\nVersion: 1.0\n")
    offered = ("lines = their_trackers:Lines", "needs = their_trackers:Needs", "broken = their_trackers:Nothing")
    (info / "entry_points.txt").write_text("\n".join([f"[{registry.GROUP}]", *offered]))
    monkeypatch.syspath_prepend(str(site))
    yield


def tracked(path: Path) -> list[list[Any]]:
    return [json.loads(line) for line in (path / "tracked.jsonl").read_text().splitlines()]


def sent(path: Path) -> Counter[str]:
    """What was logged, with its place on its axis."""
    return Counter(json.dumps(call[:3]) for call in tracked(path) if call[0] in ("log", "table"))


def test_each_figure_and_table_is_sent_once_whatever_is_killed(tmp_path: Path, installed: None) -> None:
    run = Run.of(tmp_path, "whole", logging={"trackers": ["lines"]})
    listener = run.go_on()
    whole = sent(run.path)
    steps = sum(record["kind"] == "step" for record in records(run.path))
    assert set(whole.values()) == {1}
    assert {key for key in whole if '"step"' in key} == {json.dumps(["log", "step", i]) for i in range(steps)}
    assert {key for key in whole if '"round"' in key} == {json.dumps(["log", "round", i]) for i in range(3)}
    assert {key for key in whole if '"table"' in key} == {
        json.dumps(["table", name, i])
        for name in ("samples/heldout", "pairs")
        for i in range(3)
        if i or name != "pairs"
    }
    for kill_at in range(2, len(listener.events), 5):
        killed = run.at(tmp_path / f"killed-{kill_at}")
        with pytest.raises(Kill):
            killed.go_on(kill_at=kill_at)
        killed.go_on()
        assert sent(killed.path) == whole, kill_at
        starts = [call for call in tracked(killed.path) if call[0] == "start"]
        assert len(starts) == 2 and starts[0][2] == starts[1][2]
        calls = [call[0] for call in tracked(killed.path)]
        assert starts[1][3] == sum(call in ("log", "table") for call in calls[: calls.index("start", 1)])


def test_what_is_sent_is_what_the_run_says(tmp_path: Path, installed: None) -> None:
    run = Run.of(tmp_path, logging={"trackers": ["lines"]})
    run.go_on()
    calls, lines = tracked(run.path), records(run.path)
    assert calls[0][0] == "start" and calls[0][1] == "run" and calls[0][3:] == [0, 2]
    logged = {(axis, position): figures for kind, axis, position, figures in (c for c in calls if c[0] == "log")}
    steps = [record for record in lines if record["kind"] == "step"]
    assert [logged["step", i]["step/loss"] for i in range(len(steps))] == [record["loss"] for record in steps]
    evaluated = [record for record in lines if record["kind"] == "evaluated"]
    for record in evaluated:
        figures = logged["round", record["policy_version"]]
        assert figures["evaluation/heldout/kl_initial"] == record["kl_initial"]
        assert figures["evaluation/heldout/judges/reward/mean"] == record["judges"]["reward"]["mean"]
    assert (
        logged["round", 2]["evaluation/heldout/judges/reward/gain_low"] == evaluated[-1]["judges"]["reward"]["gain"][1]
    )
    done = [record for record in lines if record["kind"] == "round_done"]
    assert logged["round", 2]["judging/reward"] == done[1]["reward"]
    assert logged["round", 2]["pairs/outcomes/paired"] == done[1]["outcomes"]["paired"]
    assert "push/probe_gap" in logged["round", 2] and "seconds/sampling" in logged["round", 2]
    ended = calls[-1]
    assert ended[0] == "finish" and ended[1]["ended"] == "done" and ended[1]["num_rounds"] == 2
    assert ended[1]["learning/loss"] == done[1]["loss"]


def test_tables_hold_the_answers_and_pairs_of_the_run(tmp_path: Path, installed: None) -> None:
    run = Run.of(tmp_path, logging={"trackers": ["lines"]})
    run.go_on()
    tables = {(name, number): (columns, rows) for _, name, number, columns, rows in (
        call for call in tracked(run.path) if call[0] == "table"
    )}  # fmt: skip
    with RunStore.read(run.path) as store:
        summary = store.round(1).get_json("evaluation/heldout/summary")
    columns, rows = tables["samples/heldout", 2]
    assert columns == ["prompt", "answer", "reward"]
    assert [row[0] for row in rows] == ["heldout 0", "heldout 1"]
    assert [row[2] for row in rows] == [summary["scores"]["reward"][name] for name in ("h0", "h1")]
    columns, rows = tables["pairs", 1]
    assert columns == ["prompt", "chosen", "rejected", "margin"] and rows
    assert all(
        prompt.startswith("train ") and chosen != rejected and margin > 0 for prompt, chosen, rejected, margin in rows
    )


def test_after_a_rewind_another_run_is_sent_whole(tmp_path: Path, installed: None) -> None:
    run = Run.of(tmp_path, run__keep_optimizer="all", logging={"trackers": ["lines"]})
    run.go_on()
    first = tracked(run.path)
    RunStore.rewind(run.path, num_kept=1)
    moved = run.at(run.path.rename(tmp_path / "moved"))
    moved.go_on()
    second = tracked(moved.path)[len(first) :]
    assert [call[0] for call in second].count("start") == 1 and second[0][1] == "moved-2"
    assert second[0][2] != first[0][2] and second[0][3] == 0
    kept = [[*call[:3]] for call in first if call[0] in ("log", "table")]
    assert sorted(map(str, ([*call[:3]] for call in second if call[0] in ("log", "table")))) == sorted(map(str, kept))


def test_a_moved_run_keeps_its_name_in_trackers(tmp_path: Path, installed: None) -> None:
    run = Run.of(tmp_path, "reviews", logging={"trackers": ["lines"]})
    with pytest.raises(Kill):
        run.go_on(kill_at=40)
    moved = run.at(run.path.rename(tmp_path / "moved"))
    moved.go_on()
    first, second = (call for call in tracked(moved.path) if call[0] == "start")
    assert first[1:3] == second[1:3] and first[1] == "reviews"


def test_a_tracker_that_is_named_later_gets_the_whole_run(tmp_path: Path, installed: None) -> None:
    run = Run.of(tmp_path)
    run.go_on()
    longer = Run.of(tmp_path, run__rounds=3, logging={"trackers": ["lines"]}).at(run.path)
    longer.go_on()
    assert [call[2] for call in tracked(run.path) if call[:2] == ["log", "round"]] == [0, 1, 2, 3]


class Faulty:
    """Has only what it needs, and fails in one method."""

    def __init__(self, method: str, hangs: bool) -> None:
        self.method, self.hangs, self.calls = method, hangs, Counter[str]()
        for name in ("start", "log", "table", "finish"):
            setattr(self, name, lambda *_, name=name: self.take(name))

    def take(self, name: str) -> None:
        self.calls[name] += 1
        if name == self.method:
            if self.hangs:
                threading.Event().wait()
            raise SystemExit("no \n network")


@pytest.mark.parametrize("hangs", [False, True])
@pytest.mark.parametrize("method", ["start", "log", "table", "finish"])
def test_a_faulty_tracker_is_told_once_and_changes_nothing(
    method: str, hangs: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Run.of(tmp_path, "plain")
    plain.go_on()
    faulty = Faulty(method, hangs)
    monkeypatch.setattr("online_dpo.commands.run.make_trackers", lambda section: {"faulty": faulty})
    monkeypatch.setattr(worker, "CLOSE_S", 0.2 if hangs else 60.0)
    run = plain.at(tmp_path / "run")
    warned = run.go_on().warned
    assert records(run.path) == records(plain.path)
    if hangs:
        assert len(warned) == 1 and "faulty did not answer within" in warned[0]
        return
    assert f"warning: tracker faulty failed (SystemExit in {method}); the run goes on" in warned[0]
    assert warned[0].endswith(": no network")
    if method == "start":
        assert faulty.calls == {"start": 1} and len(warned) == 1
    else:
        assert faulty.calls["finish"] == 1 and len(warned) == (2 if faulty.calls[method] > 1 else 1)


def test_calls_beyond_the_bound_are_dropped_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "MAX_WAITING", 3)
    monkeypatch.setattr(worker, "CLOSE_S", 20.0)
    gate, taken = threading.Event(), []
    slow = worker.Worker("slow", taken)  # type: ignore[arg-type]
    slow.begin([("start", lambda tracker: gate.wait())])
    for number in range(5):
        slow.put("log", lambda tracker, number=number: tracker.append(number))
    assert slow.problems() == ["tracker slow is too slow: 3 calls wait, and more are dropped"]
    gate.set()
    assert slow.close(lambda tracker: tracker.append("end")) == [
        "tracker slow: 2 calls were dropped because it was too slow"
    ]
    assert taken == [0, 1, 2, "end"]


@pytest.mark.parametrize(
    ("logging", "message"),
    [
        ({"trackers": ["wandbb"]}, "logging.trackers has wandbb, which is no tracker.*did you mean wandb"),
        ({"trackers": ["mlflow"]}, "known are: broken, lines, needs, tensorboard, trackio, wandb"),
        ({"trackers": ["wandb", "wandb"]}, "logging.trackers names a tracker twice"),
        ({"trackers": ["needs"]}, "the package a_package_that_nobody_has is not installed; pip install a_package"),
        ({"trackers": ["broken"]}, "their_trackers:Nothing cannot be imported .AttributeError"),
        ({"tracker_options": {"lin": {}}}, "logging.tracker_options has lin, which is no tracker.*did you mean lines"),
        (
            {"trackers": ["lines"], "tracker_options": {"lines": {"fil": "x"}}},
            "logging.tracker_options.lines does not fit the tracker lines .*'fil'.*; its options: file",
        ),
        (
            {"trackers": ["wandb"], "tracker_options": {"wandb": {"mode": "of"}}},
            "logging.tracker_options.wandb: mode is of; it must be one of online, offline",
        ),
        (
            {"trackers": ["wandb"], "tracker_options": {"wandb": {"api_key": "abc"}}},
            "logging.tracker_options.wandb.api_key looks like a secret, and the config is written",
        ),
    ],
)
def test_what_cannot_be_tracked_is_said_before_anything_starts(
    logging: dict[str, Any], message: str, installed: None
) -> None:
    with pytest.raises(ConfigError, match=message):
        check_machine(load_config({**BASE, "logging": logging}))


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio"])
def test_a_tracker_that_is_not_installed_is_refused_with_the_way_to_get_it(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "find_spec", lambda package: None)
    with pytest.raises(ConfigError, match=rf"package {name} is not installed; pip install 'online-dpo\[{name}\]'"):
        check_machine(load_config({**BASE, "logging": {"trackers": [name]}}))


def test_the_former_switch_of_old_run_directories_is_read() -> None:
    assert LoggingSection.model_validate({"tensorboard": True}).trackers == ["tensorboard"]
    config = load_config({**BASE, "logging": {"tensorboard": False}})
    assert config.logging.trackers == [] and "tensorboard" not in dump_config(config)
