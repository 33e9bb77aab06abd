"""Typed results hold every figure of `metrics.jsonl`, under its name."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
from loop_runs import Run

from online_dpo.reports.result_reading import read_initial, read_round, read_rounds
from online_dpo.reports.results import Estimate, RoundResult
from online_dpo.store.run_store import RunStore

LABELS = {
    "objective": {"type": "kto"},
    "pairing": {"labels": {"type": "quantile", "share": 0.4}},
}


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """(name of the innermost key, value) of everything in records, mappings and lists."""
    if is_dataclass(value):
        value = {entry.name: getattr(value, entry.name) for entry in fields(value)}
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, key)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from leaves(inner, name)
    else:
        yield name, value


@pytest.mark.parametrize("sections", [{}, LABELS], ids=["pairs", "labels"])
def test_every_figure_of_the_file_is_in_the_record_under_its_name(sections: dict[str, Any], tmp_path: Path) -> None:
    """Would catch a figure that is dropped, renamed or put into `extra` because no field holds it."""
    run = Run.of(tmp_path, verdicts={"repeated": 0.9}, **sections)
    run.go_on()
    with RunStore.read(run.path) as store:
        lines = store.metrics()
    results = read_rounds(lines)
    assert [result.round for result in results] == [0, 1]
    for result, line in zip(results, [line for line in lines if line["kind"] == "round_done"], strict=True):
        held = list(leaves(result))
        missing = [found for found in leaves(line) if found not in held and found[0] != "kind"]
        assert missing == []
        assert result.extra == {}
        assert all(evaluation.extra == {} for evaluation in result.evaluation.values())
        assert all(report.extra == {} for report in result.judging.judges.values())
    assert results[1].push.probe_gap == max(
        line["probe_gap"] for line in lines if line["kind"] == "pushed" and line["round"] == 1
    )
    gain = results[1].evaluation["heldout"].judges["reward"].gain
    assert isinstance(gain, Estimate) and gain.low <= gain.value <= gain.high
    initial = read_initial(lines)["heldout"]
    assert initial.judges["reward"].gain is None and initial.sampling.num_completions == 2


def test_what_no_field_holds_is_kept() -> None:
    line = {
        "kind": "round_done", "round": 3, "policy_version": 4, "num_novelties": 7, "evaluation": {},
        "num_my_calls": 5, "judges": {"reward": {"num_verdicts": 2, "depth": 0.5, "counters": {"num_my_calls": 5}}},
    }  # fmt: skip
    before = json.dumps(line)
    result = read_round(line)
    assert json.dumps(line) == before, "the line is only read"
    assert result.extra == {"num_novelties": 7}
    report = result.judging.judges["reward"]
    assert (report.extra, report.counters, report.num_verdicts) == ({"depth": 0.5}, {"num_my_calls": 5}, 2)
    assert result.sampling.num_prompts is None


def test_every_field_says_what_it_is() -> None:
    """`help` and the documentation show an attribute's docstring."""
    import ast
    import inspect

    from online_dpo.reports import results, run_result

    for node in [node for module in (results, run_result) for node in ast.parse(inspect.getsource(module)).body]:
        if isinstance(node, ast.ClassDef) and node.name != "Estimate":
            assert ast.get_docstring(node)
            for entry, after in zip(node.body, [*node.body[1:], None], strict=True):
                if isinstance(entry, ast.AnnAssign):
                    said = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                    assert said, f"{node.name}.{ast.unparse(entry.target)}"
    assert RoundResult(round=0, policy_version=1).warnings == ()
