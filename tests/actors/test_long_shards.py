"""Shards whose prompts are more tokens than an engine takes in at once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import sys

from actors.generator import EngineSpec, Generator
from online_dpo.types import Prompt, SamplingPlan, Shard

spec = EngineSpec(
    model_folder=sys.argv[1], trust_remote_code=False, dtype="float32", max_model_len=320, max_num_seqs=256,
    weight_push="merge", lora_rank=8, lora_targets=("q_proj",), tensor_parallel=1, eos_token_ids=(2,),
    gpu_memory_utilization=0.5, block_size=None, enforce_eager=True, seed=0,
)
generator = Generator(spec)
generator.push(None, 0)
prompts = tuple(
    Prompt(prompt_id=str(i), text="x", token_ids=tuple(3 + (7 * i + 13 * j) % 100 for j in range(300)))
    for i in range(40)
)
plan = SamplingPlan(
    purpose="test", round_index=0, num_samples=3, temperature=1.0, top_p=1.0, max_tokens=4, stop=(), run_seed=0
)
completions = generator.sample(Shard(index=0, prompts=prompts), plan, 0)
assert [c.prompt_id for c in completions] == [str(i) for i in range(40) for _ in range(3)]
print("sampled", len(completions))
"""


def test_prompts_of_36_000_tokens_in_one_shard(tiny_model: Path) -> None:
    """vLLM 0.32 on CPU dies ("CPU Generator does not use offset") of a seeded request whose prompt it splits."""
    env = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    command = [sys.executable, "-c", SCRIPT, str(tiny_model)]
    done = subprocess.run(command, env=env, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == "sampled 120"
