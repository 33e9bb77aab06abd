"""Generators and learner in turns on one GPU: who sleeps when, and that no weights from before a sleep are used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from config_kit import BASE
from loop_kit import FakeGenerator, FakeStages
from loop_runs import Kill, Run, comparable

from online_dpo.config.loading import load_config
from online_dpo.errors import ConfigError, WeightMismatchError
from online_dpo.loop.weight_sync import Pusher

TURNS = ("sleep", "wake", "push", "probe", "sample", "reference_logps", "step")
ORDER = """
wake push probe sample sample sample
sleep reference_logps step step
wake push probe sample sample sample
sleep reference_logps step step
wake push probe sample
"""  # two rounds of two shards, and an evaluation of one shard before the first and after each


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, FakeStages]:
    run = Run.of(tmp_path_factory.mktemp("colocated"), layout="colocated")
    stages = FakeStages(run.config)
    run.go_on(stages)
    return run, stages


def test_the_engine_processs_while_the_learner_works_and_takes_the_weights_anew(
    finished: tuple[Run, FakeStages], tmp_path: Path
) -> None:
    run, stages = finished
    assert [call.split()[0] for call in stages.tape.calls(*TURNS)] == ORDER.split()
    separate = Run.of(tmp_path)
    apart = FakeStages(separate.config)
    separate.go_on(apart)
    assert apart.tape.calls("sleep", "wake") == []
    left, right = comparable(run.path), comparable(separate.path)
    own = {"config.yaml", "run.json", "run.sha256"}  # hold the layout, or a hash of it
    assert left.keys() == right.keys()
    assert {name for name in left if left[name] != right[name]} == own


@pytest.mark.parametrize("kill_at", range(0, 56, 7))
def test_a_killed_run_samples_nothing_from_before_a_sleep(
    finished: tuple[Run, FakeStages], kill_at: int, tmp_path: Path
) -> None:
    """The fake's weights are others after a sleep, as engines of peers had them: they would be found in the bytes."""
    clean, _ = finished
    run, stages = clean.at(tmp_path / "run"), FakeStages(clean.config)
    with pytest.raises(Kill):
        run.go_on(stages, kill_at=kill_at)
    run.go_on(stages)  # the same engines: asleep or awake, as the kill left them
    assert comparable(run.path) == comparable(clean.path)


class Corrupted(FakeGenerator):
    """A sleep spoils what no push mends."""

    slept = False

    def sleep(self) -> None:
        self.slept = True

    def push(self, *args: Any) -> str | None:
        digest = super().push(*args)
        if self.slept:
            self.weights = self.sampling_weights = tuple(weight + 1.0 for weight in self.weights)
        return digest


def test_an_engine_that_a_sleep_has_spoiled_stops_the_run(tmp_path: Path) -> None:
    run = Run.of(tmp_path, layout="colocated")
    with pytest.raises(WeightMismatchError, match="disagree on the probe"):
        run.go_on(FakeStages(run.config, generators=[Corrupted()]))


def test_rest_without_turns_does_nothing(finished: tuple[Run, FakeStages]) -> None:
    stages = FakeStages(finished[0].config)
    Pusher(stages, [], 1.0).rest()
    assert stages.tape == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"generator": {"replicas": 2}}, "layout is colocated and generator.replicas is 2; one engine and the learner"),
        ({"generator": {"tensor_parallel": 4}}, "layout is colocated and generator.tensor_parallel is 4; "),
        ({"generator": {"num_gpus": 0.5}}, "layout is colocated and generator.num_gpus is 0.5; the shares"),
        (
            {"learner": {"num_workers": 2}},
            "layout is colocated and learner.num_workers is 2; .* to 1, or layout",
        ),
        ({"learner": {"num_gpus": 1}}, "layout is colocated and learner.num_gpus is 1; .* set layout to separate"),
    ],
)
def test_what_makes_no_sense_on_one_gpu_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config({**BASE, "layout": "colocated", **changes})


def test_turns_without_an_engine_are_refused(tmp_path: Path) -> None:
    pairs = {"model": {"path": "embedded:policy"}, "pairs": {"source": str(tmp_path / "pairs.jsonl")}}
    with pytest.raises(ConfigError, match="layout is colocated and nothing is sampled"):
        load_config({**pairs, "layout": "colocated"})
