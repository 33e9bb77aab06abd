"""`make gpu-check`: what fails, crashes, hangs or comes too late is reported, and the steps after it still run."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
REPORT = """
import os, sys, time
sys.path.insert(0, "benchmarks/gpu_steps")
from shapes import Skipped, expect, step
"""


@pytest.fixture(scope="module")
def check() -> ModuleType:
    """`benchmarks/gpu_check.py`, which belongs to no package."""
    spec = importlib.util.spec_from_file_location("gpu_check", ROOT / "benchmarks/gpu_check.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_check"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def run(check: ModuleType, folder: Path, jobs: dict[tuple[str, ...], str], *options: str) -> tuple[int, dict[str, Any]]:
    """Exit code and report of a check with these jobs: names of steps -> Python code."""
    limits = {"hangs": 1.0}
    made = [check.Job(("-c", REPORT + code), limits.get(names[0], 60.0), names) for names, code in jobs.items()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(check, "JOBS", made)
        patch.setattr(check, "ORDER", sorted((name for names in jobs for name in names), reverse=True))
        code = check.main(["--tiny", "--out", str(folder), "--python", sys.executable, *options])
    return code, json.loads((folder / "report.json").read_text())


def test_no_failure_hides_a_later_step(check: ModuleType, tmp_path: Path) -> None:
    fails = """
with step("fails") as figures:
    figures["seen"] = 3
    expect(False, "the gap is\\ntoo wide")
with step("after it"):
    raise Skipped("not here")
"""
    jobs = {
        ("fails", "after it"): fails,
        ("crashes",): "print('on its way'); os.abort()",
        ("hangs", "never begun"): "with step('hangs'): pass\ntime.sleep(60)",
        ("ends", "in silence"): "with step('ends'): raise SystemExit('no such option')",
        ("last",): "with step('last') as figures: figures['rate'] = 1234.5678",
    }
    code, report = run(check, tmp_path, jobs)
    found = {step["name"]: (step["result"], step["detail"]) for step in report["steps"]}
    assert code == 1
    assert report["steps"][0]["name"] == "never begun"  # in the report's order, not in that of the work
    assert found["fails"] == ("failed", "Failed: the gap is too wide")
    assert found["after it"] == ("skipped", "not here")
    assert found["crashes"] == ("failed", "its process ended with code -6; see crashes.log: on its way")
    assert found["hangs"] == ("ok", "")
    assert found["never begun"][0] == "failed" and found["never begun"][1].startswith("it took longer than 1 s")
    assert found["ends"] == ("failed", "SystemExit: no such option")
    assert found["in silence"][1].startswith("its process ended with code 0; see ends.log")
    assert found["last"] == ("ok", "")
    table = (tmp_path / "report.md").read_text().splitlines()[2:]
    assert table[3].startswith("| last | ok | ") and table[3].endswith(" | rate 1235 |")
    assert len(table) == 2 + len(found) and all(line.count("|") == 5 for line in table)


def test_what_does_not_fit_into_the_budget_is_not_run_and_not_a_success(check: ModuleType, tmp_path: Path) -> None:
    jobs = {("first",): "with step('first'): time.sleep(0.5)", ("second", "third"): "raise AssertionError"}
    code, report = run(check, tmp_path, jobs, "--budget-s", "0.4")
    found = {step["name"]: step["result"] for step in report["steps"]}
    assert found == {"first": "failed", "second": "not run", "third": "not run"}
    assert code == 1
    code, report = run(check, tmp_path, jobs, "--only", "first")
    assert (code, [step["result"] for step in report["steps"]]) == (0, ["ok"])


def test_every_step_has_a_place_in_the_report(check: ModuleType) -> None:
    assert {"install", "install, nf4", *(name for job in check.JOBS for name in job.steps)} == set(check.ORDER)
    assert len(check.ORDER) == 2 + sum(len(job.steps) for job in check.JOBS)


@pytest.mark.exhaustive
def test_all_steps_at_tiny_sizes(check: ModuleType, tmp_path: Path) -> None:
    """Three minutes: the same code as on a GPU, real engines, Ray and TRL included."""
    assert check.main(["--tiny", "--out", str(tmp_path), "--python", sys.executable]) == 0
    steps = {step["name"]: step for step in json.loads((tmp_path / "report.json").read_text())["steps"]}
    assert {name for name, step in steps.items() if step["result"] == "skipped"} <= {"push to an nf4 base"}
    assert all("MFU" not in step["figures"] for step in steps.values())
    assert steps["push by lora"]["figures"]["nats per token from PEFT"] < 5e-2
