"""Two replicas, two-way tensor parallelism, and an exported model, each on real engines."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest
import ray
import torch
from engine_kit import Tape, World, small_config

from actors.generator import EngineSpec, Generator
from online_dpo.commands.export import export
from online_dpo.loop.stages import Event
from online_dpo.models.adapters import read_adapter
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


class Killing(Tape):
    """Kills parts of the run at certain events."""

    PLAN: ClassVar = {
        ("step", 0, 0): "learner",  # nothing of its round is committed yet
        ("judging_started", 1, 0): "judge",
        ("paired", 1, None): "generator",  # it has nothing to do until the next push
        ("step", 1, 1): "learner",  # after a checkpoint
    }

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world, self.left = world, dict(self.PLAN)

    def hear(self, event: Event) -> None:
        super().hear(event)
        number = event.data.get("step", event.data.get("shard"))
        victim = self.left.pop((event.kind, event.round_index, number), None)
        if victim is not None:
            self.world.kill(victim)

    def count(self, kind: str, round_index: int) -> int:
        return sum((event.kind, event.round_index) == (kind, round_index) for event in self.events)


def tree_of_results(run_dir: Path) -> dict[str, str]:
    """sha256 of everything that was sampled, judged, paired and learned."""
    return {
        file.relative_to(run_dir).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in run_dir.rglob("*")
        if file.suffix in (".parquet", ".safetensors") and "tensorboard" not in file.parts
    }


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

    in_turns = ["generator.threads=1", "learner.threads=1", "layout=colocated"]
    single = World(small_config(tmp_path / "one", tiny_model, in_turns))
    # On the way its parts die, some of them twice: those that replace them do the same.
    single.sabotage(die_while_sampling)
    tape = single.run(tmp_path / "one" / "run", tape=Killing(single))
    single.close()
    assert [line.split(" was lost while ")[0] for line in tape.lines] == [
        "round 1: generator 0",
        "round 1: the learner",
        "round 2: judge reward",
        "round 2: generator 0",  # found when it is to sleep
        "round 2: the learner",
    ]
    assert "sampling" in tape.lines[0] and "Ray" not in "".join(tape.lines)
    assert tape.count("round_started", 0) == 2 and tape.count("step", 0) > 1  # the loop began anew
    assert tree_of_results(two_replicas) == tree_of_results(tmp_path / "one" / "run")
    with RunStore.read(tmp_path / "one" / "run") as store:
        store.verify()
        assert len([record for record in store.metrics() if record["kind"] == "incident"]) == 5
    assert "Worker exit type" in (tmp_path / "one" / "run" / "actors.log").read_text()


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
        model_folder=str(tmp_path / "merged"), trust_remote_code=False, dtype="bfloat16", max_model_len=128,
        max_num_seqs=8, weight_push="merge", lora_rank=8, lora_targets=(), tensor_parallel=1, eos_token_ids=(2,),
        gpu_memory_utilization=0.5, block_size=None, enforce_eager=True, seed=0,
    )  # fmt: skip
    env = {"env_vars": {"VLLM_CPU_KVCACHE_SPACE": "1"}}
    actor = ray.remote(Generator).options(num_cpus=1, runtime_env=env).remote(spec)
    rows = [Row(prompt_ids=(1,), completion_ids=sample.token_ids)]
    (loaded,) = ray.get(actor.probe.remote(rows))
    pushes = []
    for adapter in (read_adapter(str(tmp_path / "adapter"), base=None), None):
        pushes.append(ray.get(actor.push.remote(adapter, 1)))
        pushes += ray.get(actor.probe.remote(rows))
    ray.kill(actor)

    def says(model: Any) -> Any:
        with torch.no_grad():
            logps = model(ids).logits[0].double().log_softmax(-1)
        return pytest.approx([logps[i, token].item() for i, token in enumerate(sample.token_ids)], abs=3e-2)

    policy = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    exported = says(policy)
    assert loaded == exported
    # The run's update once more, on the exported policy and in the engine's precision.
    received, twice, _, again = pushes
    assert twice == says(PeftModel.from_pretrained(policy, str(tmp_path / "adapter"))) and twice != exported
    assert 0.9 < received.applied < 1.1
    assert again == loaded  # the base did not drift
