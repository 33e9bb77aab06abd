"""The alarm for a training judge whose score rises while another one's falls: by hand, and in runs that are killed."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from control_kit import config, measured, without_warnings
from loop_kit import FakeGenerator, FakeStages
from loop_runs import Kill, Run, comparable, records

from online_dpo.config.resuming import check_resumable
from online_dpo.errors import ConfigError
from online_dpo.loop.control import Control, advance, findings, stop_reason
from online_dpo.statistics.overoptimisation import best_after, compare_with_best, is_over_optimised
from online_dpo.types import Completion

PROMPTS = [f"p{i}" for i in range(30)]


def scores(reward: float, gold: float) -> dict[str, Any]:
    """Means of an evaluation; prompts differ from each other far more than policies do."""
    wiggle = {name: 0.01 * (i % 3) for i, name in enumerate(PROMPTS)}
    return {
        "scores": {
            "reward": {name: 10.0 * i + reward + wiggle[name] for i, name in enumerate(PROMPTS)},
            "gold": {name: -7.0 * i + gold - wiggle[name] for i, name in enumerate(PROMPTS)},
            "pairwise": {},
        }
    }


def test_it_compares_with_the_best_policy_so_far() -> None:
    """Gold rises, falls a little, and falls below where it began. Would catch a comparison with the last evaluation,
    which misses a slow decline, or with the first, which misses that there was something to lose."""
    course = [(0.0, 0.0), (1.0, 2.0), (2.0, 1.9), (3.0, 1.8), (2.5, 3.0), (2.0, 1.0)]
    evaluations = [{"set": scores(*means)} for means in course]
    best: dict[str, dict[str, int]] = {}
    rings = []
    for version in range(1, len(course)):
        found = compare_with_best(lambda name, v: evaluations[v][name], ["set"], best, version=version, seed=0)
        assert found["set"].keys() == {"gold"}
        figures = found["set"]["gold"]
        assert figures["since"] == best.get("set", {}).get("gold", 0)
        assert figures["gain"][0] == pytest.approx(course[version][1] - course[figures["since"]][1])
        assert figures["training"][0] == pytest.approx(course[version][0] - course[figures["since"]][0])
        rings.append(is_over_optimised(figures))
        best = best_after(found, best, version=version)
    assert rings == [False, True, True, False, False], "in the end both fall, which is no over-optimisation"
    assert best == {"set": {"gold": 4}}


@pytest.mark.parametrize(
    ("training", "gain", "rings"),
    [
        ([1.0, 0.1, 2.0], [-1.0, -2.0, -0.1], True),
        ([1.0, -0.1, 2.0], [-1.0, -2.0, -0.1], False),
        ([1.0, 0.1, 2.0], [-1.0, -2.0, 0.1], False),
    ],
)
def test_both_must_be_more_than_chance(training: list[float], gain: list[float], rings: bool) -> None:
    since = {"heldout": {"gold": {"since": 2, "training": training, "gain": gain}}}
    now = replace(measured(), since_best=since)
    assert bool(findings(config(alarm={"bands": {"entropy": 1e9}}), now)) == rings
    assert findings(config(alarm={"over_optimisation": False}), now) == [] == findings(config(), now)
    reason = stop_reason(config(alarm={"action": "stop"}), Control(measured=now))
    assert reason == (
        "policy 3 is over-optimised on heldout: since policy 2, where gold was highest, gold fell by 1 [0.1, 2] and "
        "the training judge's score rose by 1 [0.1, 2]: resume with alarm.over_optimisation=false, or with "
        "alarm.action=warn"
        if rings
        else None
    )
    assert advance(config(), Control(), now).best == {}
    risen = replace(now, since_best={"heldout": {"gold": {"since": 0, "training": training, "gain": [0.2, -1, 1]}}})
    assert advance(config(), Control(best={"x": {"gold": 1}}), risen).best == {"x": {"gold": 1}, "heldout": {"gold": 3}}


def test_what_the_config_allows() -> None:
    with pytest.raises(ConfigError, match=r"alarm\.over_optimisation is true and evaluation\.judges is missing; it"):
        config(alarm={"over_optimisation": True})
    with pytest.raises(ConfigError, match="alarm has empty bands; name a figure to watch, set over_optimisation"):
        config(alarm={"bands": {}})
    judged = {"sets": {"heldout": {"source": "h"}}, "judges": {"gold": {"type": "python", "target": "g"}}}
    on = config(alarm={"bands": {}, "over_optimisation": True}, evaluation=judged)
    assert check_resumable(on, config(alarm={"over_optimisation": False}, evaluation=judged))
    assert Control.from_dict({"beta_factor": 2.0, "measured": None}) == Control(beta_factor=2.0), "of an older run"


class Drifting(FakeGenerator):
    """Says of which policy it is."""

    def sample(self, *args: Any) -> tuple[Completion, ...]:
        return tuple(replace(c, text=f"{self.version} {c.text}") for c in super().sample(*args))


def judge(text: str) -> float:
    """The training judge likes every new policy better, gold every one up to the second."""
    is_gold = text.startswith("gold ")
    version = int(text.removeprefix("gold ").split()[0])
    noise = len(text) / 1000
    return noise + (min(version, 4 - version) if is_gold else version)


def test_the_alarm_in_a_run_that_is_killed_and_goes_on(tmp_path: Path) -> None:
    """Would catch a best policy that is forgotten or recomputed after a kill, and a stop without its round."""
    evaluation = {
        "sets": {"heldout": {"source": str(tmp_path / "heldout.jsonl"), "count": 10}},
        "judges": {"gold": {"type": "python", "target": "none:none"}},
    }

    def run_of(name: str, **alarm: Any) -> Run:
        bands = {"entropy": 1e9}
        return Run.of(tmp_path, name, run__rounds=4, evaluation=evaluation, alarm={"bands": bands, **alarm})

    def stages(run: Run) -> FakeStages:
        return FakeStages(run.config, generators=[Drifting()], judge=judge)

    run, free = run_of("run", action="stop"), run_of("free", over_optimisation=False)
    whole = run.go_on(stages(run))
    assert [(e.kind, e.round_index) for e in whole.events[-2:]] == [("round_committed", 2), ("run_stopped", 3)]
    reason = whole.events[-1].data["reason"]
    assert reason.startswith("policy 3 is over-optimised on heldout: since policy 2, where gold was highest, gold fell")
    evaluated = [r for r in records(run.path) if r["kind"] == "evaluated" and r["policy_version"] == 3]
    assert evaluated[0]["judges"]["reward"]["win_rate"][0] == 1.0
    assert evaluated[0]["judges"]["gold"]["win_rate"][1] > 0.5
    expected = comparable(run.path)
    for number in range(0, len(whole.events), 4):
        killed = run.at(tmp_path / f"{number}")
        with pytest.raises(Kill):
            killed.go_on(stages(run), kill_at=number)
        with suppress(Kill):
            killed.go_on(stages(run), kill_at=7 * number % 11)
        killed.go_on(stages(run))
        assert comparable(killed.path) == expected, f"killed before event {number}, {whole.events[number].kind}"
    free.go_on(stages(free))
    free.at(run.path).go_on(stages(free))
    assert without_warnings(run.path) == without_warnings(free.path)
    assert not any("over-optimised" in w for r in records(free.path) for w in r.get("warnings", []))
