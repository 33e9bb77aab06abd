"""What each actor of a run reserves of the cluster: CPUs, GPUs and threads.

Functions of the config and of the number of GPUs that Ray knows; Ray itself is only asked for that number.
"""

from __future__ import annotations

import math
from typing import Any, cast

import ray

from online_dpo.config.candidates.section import ChatWriter
from online_dpo.config.judges.section import JudgeSection
from online_dpo.config.run import RunConfig
from online_dpo.errors import UserError

GENERATOR_CPUS = LEARNER_CPUS = 1.0
"""Logical CPUs: generator and learner take turns, so reserving the cores that each can use would only block them."""

_KEEP_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40)}
"""For glibc. It would give large tensors back to the system when they are freed, and new ones then come page by page:
a seventh of a learner's step at 0.5 B."""

_FEW_KERNELS = {"LRU_CACHE_CAPACITY": "128", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "128"}
"""For PyTorch and its oneDNN, which by default keep 1024 kernels each, one for every number of tokens: a learner in
bfloat16 grew by 1.7 GiB within 150 rounds of answers of all lengths, and a reward model by 1."""


def num_gpus() -> float:
    """GPUs of the cluster."""
    return float(ray.cluster_resources().get("GPU", 0.0))


def cpus_needed(config: RunConfig) -> float:
    """Logical CPUs that a run's actors reserve."""
    num_generators = config.generator.replicas if config.needs_generators else 0
    engines = GENERATOR_CPUS * num_generators + LEARNER_CPUS * config.learner.num_workers
    return engines + sum(hosted.num_cpus for hosted in _hosted(config))


def generator_options(config: RunConfig, gpus: float) -> dict[str, Any]:
    """Ray's options of a generator.

    Args:
        config: of the run.
        gpus: of the cluster.
    """
    section = config.generator
    threads = max(1, cast(int, section.threads) // section.tensor_parallel)  # of each of the engine's workers
    options = _on_cpu(_options(GENERATOR_CPUS, _generator_gpus(config, gpus), threads), _KEEP_MEMORY)
    options["runtime_env"]["env_vars"]["VLLM_CPU_KVCACHE_SPACE"] = str(section.kv_cache_gib)
    return options


def learner_options(config: RunConfig, gpus: float) -> dict[str, Any]:
    """Ray's options of each of the learner's workers.

    Raises:
        UserError: the generators leave too few GPUs of the cluster, or workers would share one.
    """
    options = _options(LEARNER_CPUS, _learner_gpus(config, gpus), cast(int, config.learner.threads))
    return _on_cpu(options, _KEEP_MEMORY | _FEW_KERNELS)


def judge_options(config: RunConfig, section: JudgeSection | ChatWriter, gpus: float) -> dict[str, Any]:
    """Ray's options of the host of a judge, or of a writer of candidates."""
    share = _share(config) if share_a_gpu(config, gpus) and section.num_gpus else section.num_gpus
    return _on_cpu(_options(section.num_cpus, share, cast(int, section.threads)), _FEW_KERNELS)


def share_a_gpu(config: RunConfig, gpus: float) -> bool:
    """Whether the actors use one GPU in turns."""
    return config.layout == "colocated" and gpus > 0


def _share(config: RunConfig) -> float:
    """Of each actor that uses the one GPU: what they reserve only has to add up, since they take turns."""
    num_parts = 2 + sum(hosted.num_gpus > 0 for hosted in _hosted(config))
    return math.floor(10_000 / num_parts) / 10_000  # Ray counts in ten-thousandths


def _generator_gpus(config: RunConfig, gpus: float) -> float:
    section = config.generator
    if share_a_gpu(config, gpus):
        return _share(config)
    if section.num_gpus != "auto":
        return float(section.num_gpus)
    return float(section.tensor_parallel) if gpus else 0.0


def _learner_gpus(config: RunConfig, gpus: float) -> float:
    section, workers = config.learner, config.learner.num_workers
    if share_a_gpu(config, gpus):
        return _share(config)
    if section.num_gpus != "auto":
        if workers > 1 and gpus and section.num_gpus < 1:
            raise UserError(
                f"learner.num_gpus is {section.num_gpus:g} and learner.num_workers is {workers}; NCCL wants a GPU for "
                f"each worker: set learner.num_gpus to 1 or auto, or learner.num_workers to 1"
            )
        return float(section.num_gpus)
    if not gpus:
        return 0.0
    taken = _generator_gpus(config, gpus) * config.generator.replicas if config.needs_generators else 0.0
    if taken + 1 > gpus:
        raise UserError(
            f"the cluster has {gpus:g} GPUs and the generators take {taken:g}; nothing is left for the learner: set "
            f"layout to colocated, which uses one GPU in turns, as configs/one-gpu.yaml does"
        )
    if taken + workers > gpus:
        raise UserError(
            f"the cluster has {gpus:g} GPUs, the generators take {taken:g}, and learner.num_workers is {workers}, a "
            f"GPU for each: set learner.num_workers to {math.floor(gpus - taken)} or less, or add GPUs"
        )
    return 1.0


def _hosted(config: RunConfig) -> list[JudgeSection | ChatWriter]:
    """What has an actor of its own besides engines and learner: judges and writers."""
    judges = [config.judge, config.pairing.annotator, *config.evaluation.judges.values()]
    return [*(judge for judge in judges if judge is not None), *config.hosted_writers.values()]


def _options(num_cpus: float, num_gpus: float, threads: int) -> dict[str, Any]:
    # Ray would set OMP_NUM_THREADS from num_cpus; bits depend on it, so it is set from the recorded number instead.
    # Actors share cores, so threads that wait may not spin for long; but a learner whose threads sleep at once takes
    # 1.3 to 1.5 times as long. GNU's OpenMP, which torch brings along, reads the count: some 20 microseconds.
    env_vars = {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "GOMP_SPINCOUNT": "10000",
    }
    return {"num_cpus": num_cpus, "num_gpus": num_gpus, "runtime_env": {"env_vars": env_vars}}


def _on_cpu(options: dict[str, Any], variables: dict[str, str]) -> dict[str, Any]:
    """Options of an actor, with further environment variables where it has no GPU."""
    if not options["num_gpus"]:
        options["runtime_env"]["env_vars"] |= variables
    return options
