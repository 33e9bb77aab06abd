"""Who writes the report, and when: after every round, from what is new, and never at the cost of the run."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from page_kit import Page, played

from online_dpo.commands.report import report
from online_dpo.errors import UserError
from online_dpo.reports.page.writing import REPORT, ReportWriter
from online_dpo.reports.result_reading import read_rounds
from online_dpo.reports.results import RoundResult
from online_dpo.store.round_store import RoundStore
from online_dpo.store.run_store import RunStore


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return played(tmp_path).path


@pytest.fixture
def rounds_read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rounds whose answers are read, once for each file."""
    read: list[int] = []
    get_records = RoundStore.get_records

    def noted(part: RoundStore, *arguments: Any) -> Any:
        read.append(part.index)
        return get_records(part, *arguments)

    monkeypatch.setattr(RoundStore, "get_records", noted)
    return read


def newest(store: RunStore) -> RoundResult:
    return read_rounds(store.metrics())[-1]


def cards(run_dir: Path) -> Any:
    return Page((run_dir / REPORT).read_text()).data["rounds"]


def test_only_a_new_round_is_read(run_dir: Path, rounds_read: list[int]) -> None:
    with RunStore.open(run_dir) as store:
        result = newest(store)
        ReportWriter(store, pytest.fail).round_done(result)
        assert set(rounds_read) == {0, 1}
        first = cards(run_dir)
        rounds_read.clear()
        (run_dir / "report/rounds/00001.json").unlink()
        writer = ReportWriter(store, pytest.fail)  # of a process that continues the run
        writer.round_done(result)
        assert set(rounds_read) == {1} and cards(run_dir) == first
        rounds_read.clear()
        writer.round_done(result)
        assert rounds_read == [] and cards(run_dir) == first


def test_a_round_that_was_played_again_is_read_again(run_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = played(tmp_path / "other", run__seed=5, run__rounds=2, run__dir=str(tmp_path / "other"))
    with RunStore.open(run_dir) as store:
        ReportWriter(store, pytest.fail).round_done(newest(store))
    before = cards(run_dir)
    shutil.copytree(run_dir / "report", other.path / "report")
    for kept in (run_dir / "report/rounds").iterdir():
        shutil.copy(kept, other.path / "report/rounds" / kept.name)
    damaged = other.path / "report/rounds/00000.json"
    with RunStore.open(other.path) as store:
        ReportWriter(store, pytest.fail).round_done(newest(store))
        after = cards(other.path)
        assert after != before, "what was kept of another round's samples is not taken for this one's"
        damaged.write_text(damaged.read_text()[:100])
        ReportWriter(store, pytest.fail).round_done(newest(store))
    assert cards(other.path) == after


def test_a_failure_is_told_once_and_ends_nothing(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    (run_dir / "report").write_text("a file where the folder must be")
    with RunStore.open(run_dir) as store:
        writer, result = ReportWriter(store, told.append), newest(store)
        writer.round_done(result)
        writer.round_done(result)
        assert len(told) == 1 and told[0].startswith("warning: the report of round 2 could not be written")
        (run_dir / "report").unlink()
        writer.round_done(result)
    assert len(told) == 1 and len(cards(run_dir)) == 2


def test_the_command_writes_where_it_is_told_and_nowhere_else(run_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "mine.html"
    assert report(run_dir, out=out, open_it=False) == out
    assert Page(out.read_text()).data["rounds"] and not (run_dir / "report").exists()
    assert report(run_dir, out=None, open_it=False) == run_dir / REPORT
    assert cards(run_dir) == Page(out.read_text()).data["rounds"]
    assert [path.name for path in (run_dir / "report").iterdir()] == ["report.html"]


@pytest.mark.parametrize(
    "out, why",
    [
        ("", "--out is .*, which is a folder; give a file, such as .*/report.html"),
        ("no/such/report.html", "there is no folder .*/no/such; make it first"),
        ("run/run.json/report.html", "there is no folder"),
    ],
)
def test_a_place_that_cannot_be_is_refused(out: str, why: str, run_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=why):
        report(run_dir, out=tmp_path / out, open_it=False)
