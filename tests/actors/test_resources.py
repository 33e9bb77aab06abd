"""What actors reserve of a cluster's GPUs, by the config and the number of GPUs."""

from __future__ import annotations

from typing import Any

import pytest
from config_kit import BASE

from actors.resources import cpus_needed, generator_options, judge_options, learner_options
from online_dpo.config.loading import load_config
from online_dpo.config.threads import resolve_threads
from online_dpo.errors import UserError

ON_GPU = {"type": "python", "target": "embedded:gold", "num_gpus": 1}
ON_CPU = {"type": "python", "target": "embedded:gold"}


def shares(gpus: float, **changes: Any) -> list[float]:
    """Of the generator, the learner, the training judge, and the evaluation's."""
    config = resolve_threads(load_config({**BASE, **changes}))
    judges = [config.judge, *config.evaluation.judges.values()]
    found = [generator_options(config, gpus), learner_options(config, gpus)]
    return [o["num_gpus"] for o in (*found, *(judge_options(config, judge, gpus) for judge in judges if judge))]


def test_whole_gpus_where_there_are_enough() -> None:
    assert shares(0) == [0, 0, 0]
    assert shares(2) == [1, 1, 0]
    assert shares(3, generator={"tensor_parallel": 2}, judge=ON_GPU) == [2, 1, 1]
    assert shares(1, generator={"num_gpus": 0.5}, learner={"num_gpus": 0.25}) == [0.5, 0.25, 0]
    with pytest.raises(UserError, match=r"has 1 GPUs and the generators take 1; .* set layout to colocated"):
        shares(1)


def test_each_of_the_learner_s_workers_needs_a_gpu_and_a_cpu() -> None:
    def learner(**section: Any) -> dict[str, Any]:
        return {"learner": {"num_workers": 3, **section}}

    config = load_config({**BASE, **learner()})
    assert cpus_needed(config) == cpus_needed(load_config(BASE)) + 2
    assert shares(0, **learner()) == [0, 0, 0]
    assert shares(4, **learner()) == [1, 1, 0]
    assert shares(8, **learner(num_gpus=2)) == [1, 2, 0]
    refusals = {
        3: (
            learner(),
            r"has 3 GPUs, the generators take 1, and learner.num_workers is 3, .* to 2 or less",
        ),
        1: (learner(), "nothing is left for the learner: set layout to colocated"),
        4: (
            learner(num_gpus=0.5),
            r"learner.num_gpus is 0.5 and learner.num_workers is 3; .* to 1 or auto, or",
        ),
    }
    for gpus, (changes, message) in refusals.items():
        with pytest.raises(UserError, match=message):
            shares(gpus, **changes)


@pytest.mark.parametrize("gpus", [1, 8])
def test_one_gpu_in_turns_is_shared_by_all_that_use_it(gpus: int) -> None:
    evaluation = {
        "sets": {"heldout": {"source": "embedded:openings/heldout"}},
        "judges": {"gold": ON_GPU, "other": ON_CPU},
    }
    assert shares(gpus, layout="colocated") == [0.5, 0.5, 0]
    found = shares(gpus, layout="colocated", judge=ON_GPU, evaluation=evaluation)
    assert found == [0.25, 0.25, 0.25, 0.25, 0]
    thirds = shares(gpus, layout="colocated", judge=ON_GPU)
    assert thirds == [0.3333] * 3  # Ray counts in ten-thousandths, and more than one GPU is not there
    assert shares(0, layout="colocated") == [0, 0, 0]
