"""`overlap: 1`: the next round is sampled while the learner works on this one, by a schedule and not by timing."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from crashing_disk import EVERY, instants
from kill_kit import WORK, Camera, event_kinds, go_on_and_compare, restore
from loop_kit import FakeGenerator, FakeStages, shuffled
from loop_runs import Kill, Run, comparable, records
from stopping_kit import Stingy
from timed_stages import TimedStages

from online_dpo.commands.status import read_status
from online_dpo.errors import ConfigError, JudgingStopped, WeightMismatchError
from online_dpo.loop.positions import why_stopped
from online_dpo.store.run_store import RunStore
from online_dpo.types import Completion

GOLD = {"gold": {"type": "python", "target": "none:none"}}
EVERY_2 = {"type": "every", "rounds": 2}


def overlapping(folder: Path, name: str = "run", **overrides: Any) -> Run:
    return Run.of(folder, name, **{"overlap": 1, "run__rounds": 3, "reference": EVERY_2, **overrides})


def versions(path: Path) -> list[set[int | None]]:
    """Of every round, the versions that its training samples are of."""
    with RunStore.read(path) as store:
        rounds = [*(store.round(index) for index in store.finished_rounds()), *store.unfinished_rounds()]
        return [
            {c.policy_version for name in part.names("completions/") for c in part.get_records(name, Completion)}
            for part in rounds
        ]


def test_the_schedule(tmp_path: Path) -> None:
    """Which version samples which round, what runs while the learner works, and which weights the checks compare."""
    run = overlapping(tmp_path, evaluation__sets={})
    tape = run.go_on().tape
    assert versions(run.path)[:3] == [{0}, {0}, {1}]
    # One push for each version that samples, and none of the last policy, which samples nothing.
    assert tape.calls("push") == ["push 0 base", "push 1 v1"]
    # The engine's first samples of policy 1 are scored under the adapter that was pushed: the learner has moved on.
    assert tape.calls("rescore") == ["rescore 6 policy", "rescore 6 v1 base"]
    order = [
        line for line in tape if line.startswith(("stage", "sampling_ahead", "  sample", "  reference", "  begin"))
    ]
    assert order == [
        "stage 0 stage=sampling", "  sample v0 p9,p6", "  sample v0 p3,p1",
        "sampling_ahead 1 stage=sampling", "  sample v0 p2,p8", "  sample v0 p7,p5",
        "stage 0 stage=reference", "  reference_logps 4 base", "stage 0 stage=learning", "  begin_round 0 from=0",
        "stage 0 stage=sampling",
        "stage 1 stage=sampling",
        "sampling_ahead 2 stage=sampling", "  sample v1 p4,p0", "  sample v1 p5,p2",
        "stage 1 stage=reference", "  reference_logps 4 base", "stage 1 stage=learning", "  begin_round 1 from=0",
        "stage 1 stage=sampling",
        "stage 2 stage=sampling",
        "stage 2 stage=reference", "  reference_logps 4 v2", "stage 2 stage=learning", "  begin_round 2 from=0",
    ]  # fmt: skip
    done = [record for record in records(run.path) if record["kind"] == "round_done"]
    assert [record["staleness"] for record in done] == [0, 1, 1]
    assert [record["policy_version"] for record in done] == [1, 2, 3]


@EVERY
def test_a_kill_at_any_change_of_the_disk(every: bool, tmp_path: Path) -> None:
    """Would catch a round that is sampled by the policy of another, and a check against weights that moved on."""
    run = overlapping(tmp_path, prompts__per_round=3, learner__batch_pairs=1)
    with Camera(run.path) as camera:
        work = run.go_on().tape.calls(*WORK)
    assert len(camera.pictures) > 180
    expected = comparable(run.path)
    for number in instants(camera.picture_kinds, every=every)[:: 1 if every else 3]:
        killed = run.at(tmp_path / "killed")
        restore(killed.path, {**camera.pictures[number], "lock": b""})
        go_on_and_compare(killed, work, expected, f"killed at change {number} of {len(camera.pictures)}")
        shutil.rmtree(killed.path)


@EVERY
def test_a_kill_at_any_event_and_another_in_the_continuation(every: bool, tmp_path: Path) -> None:
    run = overlapping(tmp_path, prompts__per_round=3, evaluation__judges=GOLD, verdicts={"repeated": 0.7})
    whole = run.go_on()
    work, expected = whole.tape.calls(*WORK), comparable(run.path)
    for number in instants(event_kinds(whole.events), every=every)[:: 1 if every else 2]:
        killed = run.at(tmp_path / f"{number}")
        with pytest.raises(Kill):
            killed.go_on(kill_at=number)
        with suppress(Kill):  # near its end the continuation has fewer events
            killed.go_on(kill_at=5 * number % 17)
        go_on_and_compare(killed, work, expected, f"killed before event {number}, {whole.events[number].kind}")


def test_timing_decides_nothing(tmp_path: Path) -> None:
    """Two engines whose shards, steps and verdicts are done in random orders: every order is the same run."""
    run = overlapping(tmp_path, generator__shard_prompts=1, evaluation__judges=GOLD)
    run.go_on()
    expected = comparable(run.path)
    for seed in range(8):
        other = run.at(tmp_path / f"{seed}")
        stages = FakeStages(run.config, order=shuffled(seed), generators=[FakeGenerator(), FakeGenerator()])
        other.go_on(stages)
        assert comparable(other.path) == expected, seed


class Stale(FakeGenerator):
    """Its second push is lost; it says that it was not, and its probe sees new weights, as a stale cache would."""

    def push(self, adapter: Any, version: int) -> Any:
        before = self.sampling_weights
        received = super().push(adapter, version)
        if version == 1:
            self.sampling_weights = before
        return received


def test_stale_samples_are_found_while_the_learner_trains(tmp_path: Path) -> None:
    """The check keeps its power though the learner's own weights have moved on, and nothing of it is committed."""
    run = overlapping(tmp_path, evaluation__sets={})
    with pytest.raises(WeightMismatchError, match="disagree on the sampled"):
        run.go_on(FakeStages(run.config, generators=[Stale()]))
    assert versions(run.path) == [{0}, {0}, set()]  # of round 3, begun ahead, nothing
    run.go_on()
    again = overlapping(tmp_path, "again", evaluation__sets={})
    again.go_on()
    assert comparable(run.path) == comparable(again.path)


def test_more_rounds_continue_the_run(tmp_path: Path) -> None:
    """Nothing is sampled ahead of the last round; the longer run samples it late, by the same policy."""
    longer, run = overlapping(tmp_path, "longer"), overlapping(tmp_path, run__rounds=2)
    longer.go_on()
    run.go_on()
    assert versions(run.path) == [{0}, {0}, set(), set()]
    stages = FakeStages(run.config)
    longer.at(run.path).go_on(stages)
    assert stages.tape.calls("push") == ["push 1 v1", "push 3 v3"]
    # Policy 2, which the learner has, is what the engines would hold if the push was skipped.
    assert stages.tape.calls("rescore") == ["rescore 6 v1 v2", "rescore 2 policy v2"]
    assert comparable(run.path) == comparable(longer.path)


@pytest.mark.parametrize("num_kept", [0, 1, 2])
def test_a_rewind(num_kept: int, tmp_path: Path) -> None:
    """From a run that was killed while the round after the next was sampled ahead."""
    run = overlapping(tmp_path, run__rounds=4, run__keep_optimizer="all")
    whole = run.go_on()
    expected = comparable(run.path)
    killed = run.at(tmp_path / "killed")
    kinds = [(event.kind, event.round_index) for event in whole.events]
    with pytest.raises(Kill):
        killed.go_on(kill_at=kinds.index(("shard_judged", 3)))
    with RunStore.read(killed.path) as store:
        assert store.finished_rounds() == [0, 1] and store.round(3).names("verdicts/") == ["verdicts/shard-00000"]
    RunStore.rewind(killed.path, num_kept=num_kept)
    with RunStore.read(killed.path) as store:
        store.verify()
        assert not any(part.names() for part in store.unfinished_rounds())
    killed.go_on()
    found = {name: data for name, data in comparable(killed.path).items() if not name.startswith("set-aside/")}
    assert found == expected


def test_a_budget_that_stops_the_run_keeps_what_was_sampled_ahead(tmp_path: Path) -> None:
    """It is named where the run ends and in its status, and trained on by a run that goes on."""
    free = overlapping(tmp_path, "free", drift={"max_kl": 1e-6, "action": "warn"})
    free.go_on()
    run = overlapping(tmp_path, drift={"max_kl": 1e-6, "action": "stop"})
    [*_, last] = run.go_on().events
    assert last.kind == "run_stopped"
    assert last.data["reason"].endswith("; round 2 is sampled already (2 shards), and a run that goes on uses it")
    with RunStore.read(run.path) as store:
        assert why_stopped(run.config, store) == last.data["reason"]
    assert versions(run.path) == [{0}, {0}, set()]
    stages = FakeStages(free.config)
    free.at(run.path).go_on(stages)
    assert not [call for call in stages.tape.calls("sample", "judge") if "v0" in call]

    def without_bounds(path: Path) -> dict[str, Any]:
        found = comparable(path)
        return {name: data for name, data in found.items() if not name.startswith(("config.yaml", "run."))}

    assert without_bounds(run.path) == without_bounds(free.path)


def test_a_judge_that_stops_ahead_of_its_round_costs_nothing_of_the_round_before(tmp_path: Path) -> None:
    """Round 1 is trained and committed; round 2 keeps all that was sampled and said, and asks for the rest alone."""
    run = overlapping(tmp_path, evaluation__sets={}, run__rounds=2)
    run.go_on(Stingy(run.config))
    expected = comparable(run.path)
    killed = run.at(tmp_path / "stopped")
    stages = Stingy(run.config, questions=5)
    with pytest.raises(JudgingStopped, match="round 2: judge reward is tired"):
        killed.go_on(stages)
    with RunStore.read(killed.path) as store:
        assert store.finished_rounds() == [0]
        assert store.round(1).names("completions/") == ["completions/shard-00000", "completions/shard-00001"]
    again = Stingy(run.config)
    killed.go_on(again)
    assert not again.tape.calls("sample") and not set(stages.said) & set(again.said)
    assert comparable(killed.path) == expected


def test_the_status_tells_of_both_rounds(tmp_path: Path) -> None:
    run = overlapping(tmp_path, evaluation__sets={})
    kinds = [(event.kind, event.round_index) for event in run.go_on().events]
    assert read_status(run.path)["ahead"] is None
    killed = run.at(tmp_path / "killed")
    with pytest.raises(Kill):
        killed.go_on(kill_at=kinds.index(("step", 0)))
    status = read_status(killed.path)
    part = {"has_pairs": False, "num_steps": 0}
    assert status["ahead"] == {"round": 1, "num_shards_sampled": 2, "num_shards_judged": 2, **part}
    assert status["current"]["round"] == 0 and status["current"]["num_shards_judged"] == 2


def test_what_makes_no_sense_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"reference\.rounds is 1 and overlap is 1: .*overlap to 0"):
        overlapping(tmp_path, reference={"type": "every", "logps": "sampler"})
    with pytest.raises(ConfigError, match="overlap"):
        overlapping(tmp_path, overlap=2)


# Seconds as in a round of `configs/reviews.yaml` on 2 cores (docs/results.md), where judging is a part of sampling.
G, J, REFERENCE, STEP = 6.0, 1.75, 1.75, 2.125
L = REFERENCE + 2 * STEP


@pytest.mark.parametrize(
    ("seconds", "overlap", "expected"),
    [
        ({"sample": G, "judge": J}, 0, 4 * (G + J + L)),
        ({"sample": G, "judge": J}, 1, (G + J) + 3 * max(G + J, L) + L),
        ({"sample": 1.0, "judge": J}, 0, 4 * (1.0 + J + L)),
        ({"sample": 1.0, "judge": J}, 1, (1.0 + J) + 3 * max(1.0 + J, L) + L),
    ],
)
def test_the_wall_clock_of_a_run(seconds: dict[str, float], overlap: int, expected: float, tmp_path: Path) -> None:
    """From rounds of g + j + l to rounds of max(g + j, l), whichever of the two is the longer, on a simulated clock.

    Would catch a driver that waits for the learner while a shard waits to be judged, or the other way round.
    """
    run = overlapping(tmp_path, overlap=overlap, run__rounds=4, evaluation__sets={}, generator__shard_prompts=4)
    stages = TimedStages(run.config, {**seconds, "reference_logps": REFERENCE, "step": STEP})
    run.go_on(stages)
    assert stages.now == pytest.approx(expected, abs=1e-9)
    assert stages.busy["learner"] == pytest.approx(4 * L)


def test_shards_are_judged_between_steps(tmp_path: Path) -> None:
    """Two shards a round: the first is judged while the second is sampled and the learner works."""
    run = overlapping(tmp_path, run__rounds=4, evaluation__sets={})
    stages = TimedStages(run.config, {"sample": 3.0, "judge": 2.0, "reference_logps": 1.5, "step": 2.5})
    run.go_on(stages)
    assert stages.now == pytest.approx(4 * (2 * 3.0 + 2.0) + (1.5 + 2 * 2.5))
