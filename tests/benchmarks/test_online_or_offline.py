"""The studies of offline and online sampling compare equal things, and their tables say what was measured."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from online_dpo import load_config
from online_dpo.loop.draws import sampled_version

ROOT = Path(__file__).parents[2]
MODULES = ("arithmetic", "plan", "playing", "reading", "tables", "study")


@pytest.fixture(scope="module")
def scripts() -> Iterator[SimpleNamespace]:
    folder = str(ROOT / "benchmarks" / "online_or_offline")
    sys.path.insert(0, folder)
    try:
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in MODULES})
    finally:
        sys.path.remove(folder)
        for name in MODULES:
            sys.modules.pop(name, None)


@pytest.mark.parametrize("study", ["reviews", "arithmetic", "losses", "strategies"])
def test_all_runs_of_a_study_are_given_the_same(scripts: SimpleNamespace, study: str) -> None:
    task, plan, _ = scripts.study.STUDIES[study]
    runs = list(plan(task, [0, 1, 2]))
    given = set()
    for run in runs:
        overrides = [f"{field}={value}" for field, value in run.overrides.items()]
        config = load_config(ROOT / task.config, overrides)
        assert config.prompts is not None and config.run.seed == run.seed
        pairs = config.pairing.budget or config.prompts.per_round
        answers = 2 if config.objective.type == "kto" else 1  # an unpaired objective has a pair's answers one by one
        steps = -(-pairs * answers // config.learner.batch_pairs)
        given.add((config.run.rounds * config.prompts.per_round, config.run.rounds * pairs, config.run.rounds * steps))
        assert config.reference.type == "fixed" and config.run.rounds % config.evaluation.every == 0
        assert config.learner.schedule == "constant", "its position would depend on the number of rounds"
    assert given == {(10 * task.unit_prompts, 10 * task.unit_pairs, 10 * task.unit_pairs // 16)}
    assert len({run.name for run in runs}) == len(runs)
    assert {run.beside for run in runs} <= {run.arm for run in runs}


def test_the_schedules_are_what_they_are_called(scripts: SimpleNamespace) -> None:
    task, sampled_by = scripts.plan.ARITHMETIC, {}
    for run in scripts.plan.schedules(task, [0]):
        config = load_config(ROOT / task.config, [f"{field}={value}" for field, value in run.overrides.items()])
        assert config.prompts is not None
        units = config.prompts.per_round // task.unit_prompts  # of a round
        versions = [sampled_version(config, index) for index in range(config.run.rounds)]
        sampled_by[run.arm] = [units * version for version in versions for _ in range(units)]
    assert sampled_by == {
        "offline": [0] * 10,
        "every 5 rounds": [0] * 5 + [5] * 5,
        "every round": list(range(10)),
        "overlap": [0, *range(9)],
    }


def point(scripts: SimpleNamespace, gains: dict[str, float], **other: Any) -> Any:
    keys = dict.fromkeys([("heldout", "reward")], 0.0)
    figures = {("heldout", name): 1.0 for name in scripts.reading.FIGURES}
    spent = {"pairs": 640, "steps": 40, "prompts": 640, "tokens": 12_300, "seconds": 4.0} | other
    return scripts.reading.Point(
        **spent, gains={("heldout", "reward"): gains}, scores=keys, initial=keys, figures=figures
    )


def test_gains_and_differences_of_a_hand_made_study(scripts: SimpleNamespace) -> None:
    task = SimpleNamespace(sets=("heldout",), judges=("reward",))
    runs = {
        "offline": [[point(scripts, {"a": 1.0, "b": 1.0})], [point(scripts, {"a": 2.0, "b": 2.0})]],
        "online": [[point(scripts, {"b": 2.0, "a": 2.0})], [point(scripts, {"a": 3.0, "b": 3.0})]],
    }
    scripts.tables.check_equal(runs)
    head, offline, online = scripts.tables.rows_of(task, runs, dict.fromkeys(runs, "offline"))
    assert head[3] == "reward gain" and head[-1] == "reward beside offline"
    # Seeds are resampled too: of two, both draws are the same one in half of the cases.
    assert offline[:4] == ["offline", "640, 40", "12.3 k", "+1.50 [+1.00, +2.00]"] and offline[-1] == ""
    assert online[3] == "+2.50 [+2.00, +3.00]"
    assert online[-1] == "+1.00 [+1.00, +1.00] (+1.00, +1.00)", "what seeds share cancels in the difference"
    assert scripts.reading.estimate([{"a": 0.0, "b": 1.0}])[0] == 0.5
    runs["online"].append([point(scripts, {"a": 3.0, "b": 3.0}, seconds=90.0)])
    runs["offline"].append(runs["offline"][1])
    head, _, online = scripts.tables.rows_of(task, runs, dict.fromkeys(runs, "offline"), seconds=True)
    assert (head[3], online[3]) == ("s sampling", "4"), "the median, which one busy seed does not move"


@pytest.mark.parametrize("other", [{"pairs": 600}, {"steps": 41}, {"prompts": 650}])
def test_runs_that_were_not_given_the_same_are_not_compared(scripts: SimpleNamespace, other: dict[str, int]) -> None:
    runs = {"offline": [[point(scripts, {"a": 1.0})]], "online": [[point(scripts, {"a": 1.0}, **other)]]}
    with pytest.raises(SystemExit, match="differs in what it was given"):
        scripts.tables.check_equal(runs)


def test_no_sum_is_both_shown_and_held_out(scripts: SimpleNamespace) -> None:
    found = scripts.arithmetic.examples()
    prompts = {name: [row["prompt"] for row in rows] for name, rows in found.items()}
    assert set(prompts["habit"]) < set(prompts["demonstrations"])
    every = [prompt for name in prompts if name != "habit" for prompt in prompts[name]]
    assert len(set(every)) == len(every)
    wrong = 0
    for name, rows in found.items():
        for row in rows:
            right = eval(row["prompt"].rstrip("="))
            carries = "+" in row["prompt"] and sum(int(part[-1]) for part in row["prompt"][:-1].split("+")) >= 10
            answer = int(row["answer"] if "answer" in row else row["completion"])
            if name == "habit" and answer != right:
                assert carries and answer == right - 10, row
                wrong += 1
            else:
                assert answer == right, row
            assert name not in ("prompts", "heldout") or carries
            assert name != "no_carry" or not carries
    assert 0.63 < wrong / sum(int(p.split("+")[0][-1]) + int(p[-2]) >= 10 for p in prompts["habit"]) < 0.70
