"""Two replicas, two-way tensor parallelism, and an exported model, each on real engines."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from engine_kit import World, small_config

from actors.generator import EngineSpec, Generator
from online_dpo.commands.export import export
from online_dpo.store.run_store import RunStore
from online_dpo.types import Completion, Row

# Faults run inside the generator's process, which cannot import this file.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


def completions(run_dir: Path) -> list[Completion]:
    with RunStore.read(run_dir) as store:
        names = [f"completions/shard-{shard:05d}" for shard in (0, 1)]
        return [c for index in (0, 1) for name in names for c in store.round(index).get_records(name, Completion)]


def die_while_sampling(generator: Any) -> None:
    """The process ends in the middle of its next shard of prompts."""
    honest = generator._generate

    def generate(token_ids: list[list[int]], params: Any) -> Any:
        return os._exit(1) if isinstance(params, list) else honest(token_ids, params)

    generator._generate = generate


@pytest.fixture(scope="module")
def two_replicas(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, ray_local: None) -> Path:
    """The run directory of a run with two generators."""
    folder = tmp_path_factory.mktemp("replicas")
    config = small_config(folder, tiny_model, ["generator.replicas=2", "generator.threads=1", "learner.threads=1"])
    world = World(config)
    tape = world.run(folder / "runs" / "run")
    world.close()
    # Each engine's first samples after each of the three pushes were re-scored, when it got any.
    pushes = [event.data["policy_version"] for event in tape.events if event.kind == "pushed"]
    assert pushes == [0, 1, 2]
    training = {e.data["shard"] for e in tape.events if e.kind == "rescored" and not e.data["base"]}
    assert training, "the replica that had no evaluation shard was not checked on its first training shard"
    return folder / "runs" / "run"


def test_replicas_and_tensor_parallelism_sample_the_same_policy(
    two_replicas: Path, tmp_path: Path, tiny_model: Path, ray_local: None
) -> None:
    """Every shard is alone in its engine, so who samples it cannot matter; a split matrix only rounds differently."""
    split = World(small_config(tmp_path, tiny_model, ["generator.tensor_parallel=2", "run.rounds=1"]))
    tape = split.run(tmp_path / "run")
    split.close()
    assert all(event.data["probe_gap"] < 1e-4 for event in tape.events if event.kind == "pushed")
    assert [event.data.get("probe_has_power") for event in tape.events if event.kind == "pushed"] == [None, True]

    single = World(small_config(tmp_path / "one", tiny_model, ["generator.threads=1", "learner.threads=1"]))
    # On the way, its engine dies: the one that replaces it samples the same.
    single.sabotage(die_while_sampling)
    single.run(tmp_path / "one" / "run")
    assert [generator.restarts for generator in single.stages._generators] == [1]
    single.close()
    assert completions(two_replicas) == completions(tmp_path / "one" / "run")


def test_exported_policy_loads_in_transformers_and_vllm(
    two_replicas: Path, tmp_path: Path, tiny_model: Path, ray_local: None
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert export(two_replicas, tmp_path / "adapter", round_number=2, merge=False) == 2
    assert export(two_replicas, tmp_path / "merged", round_number=None, merge=True) == 2
    assert AutoTokenizer.from_pretrained(tmp_path / "merged")("a").input_ids[0] == 1
    sample = completions(two_replicas)[0]
    ids = torch.tensor([[1, *sample.token_ids]])
    base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    with torch.no_grad():
        before = base(ids).logits
        expected = PeftModel.from_pretrained(base, str(tmp_path / "adapter"))(ids).logits
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)(ids).logits
    assert torch.allclose(merged, expected, atol=1e-4)
    assert not torch.allclose(merged, before, atol=1e-2)

    spec = EngineSpec(
        model_folder=str(tmp_path / "merged"), trust_remote_code=False, dtype="float32", max_model_len=128,
        max_num_seqs=8, weight_push="merge", lora_rank=8, lora_targets=(), tensor_parallel=1, eos_token_ids=(2,),
        gpu_memory_utilization=0.5, block_size=None, enforce_eager=True, seed=0,
    )  # fmt: skip
    env = {"env_vars": {"VLLM_CPU_KVCACHE_SPACE": "1"}}
    actor = ray.remote(Generator).options(num_cpus=1, runtime_env=env).remote(spec)
    found = ray.get(actor.probe.remote([Row(prompt_ids=(1,), completion_ids=sample.token_ids)]))[0]
    ray.kill(actor)
    logps = merged[0].log_softmax(-1)
    assert found == pytest.approx([logps[i, token].item() for i, token in enumerate(sample.token_ids)], abs=1e-4)
