"""What actors reserve of a cluster's GPUs, by the config and the number of GPUs."""

from __future__ import annotations

import os
import subprocess
import sys
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


FAULTS = """
import ctypes, resource
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.memset.argtypes = ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
libc.malloc.argtypes, libc.free.argtypes = [ctypes.c_size_t], [ctypes.c_void_p]

def write(size=64 << 20):
    memory = libc.malloc(size)
    libc.memset(memory, 1, size)
    libc.free(memory)

write()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    write()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.parametrize("options", [generator_options, learner_options])
def test_on_cpu_freed_memory_is_used_again(options: Any) -> None:
    """Page faults of writing 64 MiB four more times: 16 Ki pages each time that the memory came from the system."""
    config = resolve_threads(load_config(BASE))

    def faults(gpus: float) -> int:
        environment = {**os.environ, **options(config, gpus)["runtime_env"]["env_vars"]}
        return int(subprocess.run([sys.executable, "-c", FAULTS], env=environment, check=True, stdout=-1).stdout)

    assert faults(0) < 1000
    assert faults(2) > 4 * (64 << 20) / 2**21  # even in pages of 2 MiB


KERNELS = """
import psutil, torch

def multiply(num_tokens, weight=torch.zeros(512, 512, dtype=torch.bfloat16)):
    torch.nn.functional.linear(torch.zeros(num_tokens, 512, dtype=torch.bfloat16), weight)

multiply(2000)
before = psutil.Process().memory_info().rss
for num_tokens in range(100, 1000):
    multiply(num_tokens)
print((psutil.Process().memory_info().rss - before) >> 20)
"""


@pytest.mark.parametrize("part", ["learner", "judge"])
def test_on_cpu_other_lengths_do_not_take_more_and_more_memory(part: str) -> None:
    """MiB of products in bfloat16 for 900 numbers of tokens: 613 where all their kernels are kept, 127 otherwise."""
    config = resolve_threads(load_config(BASE))

    def variables(gpus: float) -> dict[str, str]:
        judge = load_config({**BASE, "judge": ON_GPU if gpus else ON_CPU}).judge
        options = learner_options(config, gpus) if part == "learner" else judge_options(config, judge, gpus)
        return dict(options["runtime_env"]["env_vars"])

    command = [sys.executable, "-c", KERNELS]
    done = subprocess.run(command, env={**os.environ, **variables(0)}, check=True, stdout=-1)
    assert int(done.stdout) < 250
    assert variables(0).keys() - variables(2).keys() >= {"LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY"}


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
