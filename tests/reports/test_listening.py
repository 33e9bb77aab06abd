"""Listeners cannot end or change a run, and every kind of event is described."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from loop_runs import Run, records

from online_dpo.errors import ConfigError
from online_dpo.loop.stages import Event
from online_dpo.reports.listening import EVENTS, Guarded, Listener
from online_dpo.reports.results import RoundResult
from online_dpo.store.run_store import RunStore


def test_every_event_of_a_run_is_described_with_its_data(tmp_path: Path) -> None:
    run = Run.of(tmp_path, verdicts={"repeated": 0.9})
    undescribed = set()
    for event in run.go_on().events:
        kind = EVENTS[event.kind]
        undescribed |= {(event.kind, name) for name in event.data if name not in kind.data and "..." not in kind.data}
    assert undescribed == set()


class Vandal:
    """Changes whatever it can reach."""

    def hear(self, event: Event) -> None:
        self.spoil(event.data)

    def spoil(self, value: Any) -> None:
        if isinstance(value, dict):
            for key in list(value):
                self.spoil(value[key])
                del value[key]
        elif isinstance(value, list):
            value.clear()


class Broken:
    heard = 0

    def hear(self, event: Event) -> None:
        self.heard += 1
        if event.kind == "paired":
            raise KeyError("loss")


class Rounds:
    """Has one method only."""

    def __init__(self) -> None:
        self.results: list[RoundResult] = []

    def round_done(self, result: RoundResult) -> None:
        self.results.append(result)


class Notes(Listener):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, line: str) -> None:
        self.lines.append(line)


def test_no_listener_ends_or_changes_a_run(tmp_path: Path) -> None:
    """Would catch an exception that ends it, and a listener that edits what is written down or what others hear."""
    for name in ("alone", "heard"):
        (tmp_path / name).mkdir()
    alone, heard = Run.of(tmp_path / "alone"), Run.of(tmp_path / "heard")
    alone.go_on()
    broken, rounds, notes = Broken(), Rounds(), Notes()
    guard = Guarded([Vandal(), broken, rounds, notes])
    heard.go_on(listeners=[guard])
    assert records(heard.path) == records(alone.path)
    told = "listener Broken raised KeyError in hear and is told nothing more; the run is not affected: 'loss'"
    assert guard.failed == [told] and notes.lines == [f"warning: {told}"]
    events = [event.kind for event in alone.at(tmp_path / "again").go_on().events]
    assert broken.heard == events.index("paired") + 1
    assert [result.round for result in rounds.results] == [0, 1]
    with RunStore.read(heard.path) as store:
        assert rounds.results[1].pairs.num_pairs == store.metrics()[-1]["num_pairs"]


def test_ctrl_c_in_a_listener_is_ctrl_c() -> None:
    class Impatient(Listener):
        def note(self, line: str) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Guarded([Impatient()]).note("x")


class Odd:
    def hear(self) -> None: ...


@pytest.mark.parametrize(
    ("listeners", "message"),
    [
        (Notes(), r"listeners is a Notes; give a list of them: \[listener\]"),
        ([Notes], r"listeners\[0\] is the class Notes; give an object of it: Notes\(\)"),
        ([Notes(), 3], r"listeners\[1\] is a int without any of the methods note, hear, round_done"),
        ([Odd()], r"listeners\[0\].hear of Odd cannot be called with one argument; write def hear\(self, event\)"),
    ],
)
def test_what_is_no_listener_is_said_before_anything_starts(listeners: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Guarded(listeners)
