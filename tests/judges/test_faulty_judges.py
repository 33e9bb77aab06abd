"""Judges with planted faults in the loop: the round's report names the fault, and the settings against it help."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hosted_kit import HostedStages
from loop_kit import FakeGenerator, uniform
from loop_runs import Run, records

from online_dpo.commands.status import read_status, show_status
from online_dpo.errors import NoPairsError
from online_dpo.store.run_store import RunStore
from online_dpo.types import Completion, Pair

FAULTY = f"{Path(__file__).parents[2] / 'benchmarks' / 'faulty_judge.py'}:Faulty"
NUM_PROMPTS = 160


class Talker(FakeGenerator):
    """Says a number, which is how good the answer is, and then words, whose number has nothing to do with it."""

    def sample(self, *args: Any) -> tuple[Completion, ...]:
        return tuple(
            replace(c, text=f"{uniform('quality', c.seed):.6f} " + "word " * int(20 + 100 * uniform("words", c.seed)))
            for c in super().sample(*args)
        )


def quality(completion: Completion) -> float:
    return float(completion.text.split()[0])


def faulty(name: str = "1", both_orders: bool = False, **faults: float) -> dict[str, Any]:
    return {"type": "python", "target": FAULTY, "args": {**faults, "name": name}, "both_orders": both_orders}


def play(folder: Path, judge: dict[str, Any], **sections: Any) -> tuple[Run, dict[str, Any]]:
    """One round of 160 prompts with 3 answers each; its summary."""
    rows = "".join(json.dumps({"prompt": f"question {i}", "id": f"q{i}"}) + "\n" for i in range(NUM_PROMPTS))
    (folder / "questions.jsonl").write_text(rows)
    run = Run.of(
        folder,
        run__rounds=1,
        prompts={"source": str(folder / "questions.jsonl"), "per_round": NUM_PROMPTS},
        generator={"shard_prompts": 50},
        learner={"batch_pairs": 500, "checkpoint_steps": 0},
        judge=judge,
        evaluation={},
        pairing={"strategy": "all_pairs"},
        **sections,
    )
    stages = HostedStages(run.config, generators=[Talker()])
    try:
        run.go_on(stages)
    finally:
        stages.close()
    return run, next(record for record in records(run.path) if record["kind"] == "round_done")


def share_wrong(run: Run) -> float:
    with RunStore.read(run.path) as store:
        pairs = store.round(0).get_records("pairs", Pair)
    return sum(quality(pair.chosen) < quality(pair.rejected) for pair in pairs) / len(pairs)


FAULTS = {
    "noise": ({"noise": 0.2}, "is inconsistent: asked in both orders, it gives the same answer to "),
    "position": ({"position": 0.3}, "prefers the first place: what is shown first wins "),
    "length": ({"length": 0.3}, "prefers the longer completion: it wins "),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_round_names_the_fault_and_the_settings_reduce_it(fault: str, tmp_path: Path) -> None:
    """Would catch a report that takes one fault for another, a bias that averages out before it is seen, and settings
    that cost calls and mend nothing."""
    faults, words = FAULTS[fault]
    wrong, warned, figures = {}, {}, {}
    for setting, judge in {
        "alone": faulty(**faults),
        "both": faulty(both_orders=True, **faults),
        "five": {
            "type": "ensemble",
            "aggregate": "majority",
            "judges": {f"j{i}": faulty(str(i), **faults) for i in range(5)},
        },
    }.items():
        (tmp_path / setting).mkdir()
        run, summary = play(tmp_path / setting, judge)
        wrong[setting], warned[setting] = share_wrong(run), summary["warnings"]
        figures[setting] = summary["judges"]["reward"]
    assert wrong["alone"] > 0.08 and wrong["both"] < 0.6 * wrong["alone"] and wrong["five"] < 0.7 * wrong["alone"]
    if fault == "noise":  # a judge that is asked once about everything cannot be seen to be inconsistent
        assert warned["alone"] == [] and figures["alone"]["first_wins"] == pytest.approx(0.5, abs=0.06)
        assert len(warned["both"]) == 1 and 0.6 < figures["both"]["order_consistency"] < 0.75
    else:
        [warning] = warned["alone"]
        assert warning.startswith(f"judge reward {words}")
    assert any(f"judge reward {words}" in warning for warning in warned["both"])
    others = {words for name, (_, words) in FAULTS.items() if name not in (fault, "noise")}
    assert not any(words in warning for found in warned.values() for warning in found for words in others)
    assert figures["five"]["ensembles"]["judge"]["alpha"] < 0.8


def test_a_judge_without_a_fault_is_not_accused(tmp_path: Path) -> None:
    ensemble = {"type": "ensemble", "judges": {name: faulty(name, both_orders=True) for name in ("a", "b")}}
    for number, judge in enumerate((faulty(), faulty(both_orders=True), ensemble)):
        (tmp_path / f"{number}").mkdir()
        run, summary = play(tmp_path / f"{number}", judge)
        assert summary["warnings"] == [] and share_wrong(run) == 0.0
        found = summary["judges"]["reward"]
        assert (found["num_covered"], found["abstention_rate"]) == (NUM_PROMPTS, 0.0)
        assert found.get("order_consistency", 1.0) == 1.0
    assert found["ensembles"] == {"judge": {"alpha": 1.0}}


MOODY = """
import itertools
from judges import Abstain
class Moody:
    '''Every fourth answer is another one.'''
    def __init__(self): self.count = itertools.count()
    def score(self, prompt, completion):
        return (-1.0 if next(self.count) % 4 == 0 else 1.0) * len(completion)
class First:
    def rank(self, prompt, completions): return list(range(len(completions)))
class Shown:
    def compare(self, prompt, a, b): return 0.9
def same(prompt, completion): return 0.5
def mostly(prompt, completion): return float(prompt in ("question 1", "question 2", "question 3")) * len(completion)
def half(prompt, completion):
    return Abstain(f"cannot tell {len(completion)} letters") if len(completion) % 3 else 1.0 * len(completion)
"""


def test_repeats_unmask_a_moody_judge_even_behind_a_cache(tmp_path: Path) -> None:
    """Would catch repeats that are answered from the cache, and ones that end in the pairs or in the cache."""
    (tmp_path / "moody.py").write_text(MOODY)
    moody = {"type": "python", "target": f"{tmp_path / 'moody.py'}:Moody", "concurrency": 1}
    cached = {"type": "cached", "judge": moody, "path": str(tmp_path / "cache.sqlite")}
    run, summary = play(tmp_path, cached, verdicts={"repeated": 0.4})
    found = summary["judges"]["reward"]
    num_repeated = found["num_repeated"] // 3
    assert 0.3 < num_repeated / NUM_PROMPTS < 0.5
    assert found["repeat_agreement"] < 0.8
    assert any(
        warning.startswith("judge reward is inconsistent: asked again, it gives") for warning in summary["warnings"]
    )
    assert found["counters"]["num_judge_calls"] == NUM_PROMPTS + num_repeated
    assert (summary["num_cache_hits"], summary["num_cache_misses"]) == (0, NUM_PROMPTS)
    with RunStore.read(run.path) as store:
        paid = [store.round(0).get_json(name) for name in store.round(0).names("repeats/")]
    assert sum(found["counters"]["num_judge_calls"] for found in paid) == num_repeated


def test_a_ranking_has_places_and_a_score_has_none(tmp_path: Path) -> None:
    (tmp_path / "moody.py").write_text(MOODY)
    _, summary = play(tmp_path, {"type": "python", "target": f"{tmp_path / 'moody.py'}:First"})
    [warning] = summary["warnings"]
    assert warning.startswith("judge reward prefers the first place: what is shown first wins 100 % of 480 comparisons")
    assert "this is in the pairs" in warning
    (tmp_path / "half").mkdir()
    run, summary = play(
        tmp_path / "half",
        {"type": "python", "target": f"{tmp_path / 'moody.py'}:half"},
        verdicts={"min_coverage": 0.0},
    )
    found = summary["judges"]["reward"]
    assert "first_wins" not in found and found["reasons"] == {"cannot tell N letters": found["num_abstained"]}
    assert 0.5 < found["abstention_rate"] < 0.8
    assert any("abstains from 6" in warning or "abstains from 7" in warning for warning in summary["warnings"])
    latency = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()][-1]["latency_s"]
    ((label, seconds),) = latency.items()
    assert (
        label.startswith("judge.target ")
        and seconds["num_calls"] == NUM_PROMPTS
        and 0 < seconds["mean"] <= seconds["max"]
    )
    shown = show(run)
    assert "cannot tell N letters" in shown and "prefers the longer" in shown and "moody.py:half" in shown


def test_a_judge_that_tells_nothing_apart_is_named_where_people_look(tmp_path: Path) -> None:
    (tmp_path / "moody.py").write_text(MOODY)
    same = {"type": "python", "target": f"{tmp_path / 'moody.py'}:same"}
    saying = "judge reward gives the same score to all 480 completions, so nothing can be learned from it"
    with pytest.raises(NoPairsError, match=rf"gave no pair from 160 prompts: tie 160 \({saying}\)"):
        play(tmp_path, same)
    (tmp_path / "first").mkdir()
    first = {"type": "python", "target": f"{tmp_path / 'moody.py'}:Shown", "both_orders": True}
    with pytest.raises(
        NoPairsError, match=r"prefers the first place.* asked in both orders, it gives the same answer to 0 %"
    ):
        play(tmp_path / "first", first)
    (tmp_path / "mostly").mkdir()
    run, summary = play(tmp_path / "mostly", {**same, "target": f"{tmp_path / 'moody.py'}:mostly"})
    assert summary["warnings"] == ["judge reward calls 98 % of 480 comparisons ties, which make no pairs"]
    assert summary["warnings"][0] in show(run)


def show(run: Run) -> str:
    import io

    from rich.console import Console

    console = Console(file=io.StringIO(), width=250)
    show_status(read_status(run.path), console, as_json=False)
    return console.file.getvalue()  # type: ignore[attr-defined]
