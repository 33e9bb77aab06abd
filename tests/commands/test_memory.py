"""The estimate of the learner's memory, against what autograd keeps and what a process takes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from online_dpo.commands.preparing.memory import GIB, kept_bytes, lora_parameters
from online_dpo.config.learner import LearnerSection, LoraSection
from online_dpo.learner import adapter_slots, forward
from online_dpo.models.shapes import shape_of
from online_dpo.types import Row

RANK, LENGTH = 16, 256
COMMON = {"vocab_size": 1024, "max_position_embeddings": 2048, "hidden_size": 256, "num_hidden_layers": 4}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"intermediate_size": 896, "num_attention_heads": 8, "num_key_value_heads": 2},
    "qwen3": {"intermediate_size": 768, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 64},
    "gpt_neox": {"intermediate_size": 1024, "num_attention_heads": 4},
}


def kept_by_autograd(config: Any, *, on_gpu: bool, checkpointed: bool, rows: list[Row]) -> int:
    """Bytes of all tensors that a forward pass keeps, each storage once; parameters aside.

    `on_gpu` computes as the learner does on a GPU: padded rows, PEFT's layers, SDPA, under autocast to bfloat16.
    """
    torch.manual_seed(0)
    dtype = torch.bfloat16 if on_gpu else torch.float32
    model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa").eval()
    slots = adapter_slots.attach(model, LoraSection(r=RANK, alpha=32), None, seed=0)
    section = LearnerSection(autocast="bfloat16" if on_gpu else "off", activation_checkpointing=checkpointed)
    with patch.object(forward, "uses_own_kernels", lambda *_, **__: not on_gpu):
        learner = forward.Forward(slots, section)
    own = {tensor.untyped_storage().data_ptr() for tensor in (*slots.parameters(), *slots.buffers())}
    found: dict[int, tuple[int, torch.Tensor]] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = (storage.nbytes(), tensor)  # alive, so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        learner.token_logps(rows, training=True)
    return sum(size for size, _ in found.values())


@pytest.mark.parametrize("on_gpu", [True, False], ids=["gpu", "cpu"])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_pass_keeps_is_as_estimated(family: str, on_gpu: bool) -> None:
    """Within a quarter, and never much less: what does not fit must not be said to fit."""
    config = AutoConfig.for_model(family, **COMMON, **FAMILIES[family])
    shape = shape_of(config.to_dict(), family)
    rows = [Row(prompt_ids=tuple(range(3, 67)), completion_ids=tuple(range(i, i + LENGTH - 64))) for i in range(4)]
    tokens = len(rows) * LENGTH
    for checkpointed in (False, True):
        real = kept_by_autograd(config, on_gpu=on_gpu, checkpointed=checkpointed, rows=rows)
        # The estimate also has what one layer's backward pass works with, and of checkpoints the layer itself.
        ends = (6 if on_gpu else 8) * shape.hidden_size
        layer = (kept_bytes(shape, RANK, own_kernels=not on_gpu) - ends) / (shape.num_layers + 1)
        kept = kept_bytes(shape, RANK, checkpointed=checkpointed, own_kernels=not on_gpu)
        estimate = tokens * (kept - (2 * layer if checkpointed else layer))
        assert 0.95 * real <= estimate <= 1.25 * real, (family, on_gpu, checkpointed, real / tokens, estimate / tokens)


PEAK = """
import sys, torch
from transformers import AutoConfig, AutoModelForCausalLM
from online_dpo.config.learner import LearnerSection, LoraSection
from online_dpo.learner import adapter_slots, forward
from online_dpo.types import Row
kind, fields, tokens = sys.argv[1], eval(sys.argv[2]), int(sys.argv[3])
def status(name): return int(next(l for l in open("/proc/self/status") if l.startswith(name)).split()[1]) * 1024
before = status("VmRSS")
model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **fields), dtype=torch.float32).eval()
slots = adapter_slots.attach(model, LoraSection(r=16, alpha=32), None, seed=0)
learner = forward.Forward(slots, LearnerSection(autocast="off"))
optimizer = torch.optim.AdamW(learner.trained, lr=1e-4)
rows = [Row(prompt_ids=tuple(range(3, 67)), completion_ids=tuple(range(i, i + 192))) for i in range(tokens // 256)]
for _ in range(2):
    sum(row.sum() for row in learner.token_logps(rows, training=True).logps).backward()
    optimizer.step(); optimizer.zero_grad()
print(before, status("VmHWM"))
"""


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("fields", "tokens"),
    [
        ({**COMMON, **FAMILIES["llama"], "hidden_size": 512, "intermediate_size": 1408}, 8192),
        (
            {
                "vocab_size": 151936, "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
                "num_attention_heads": 14, "num_key_value_heads": 2, "max_position_embeddings": 2048,
                "tie_word_embeddings": True,
            },
            1024,
        ),
    ],
    ids=["small", "half a billion"],
)  # fmt: skip
def test_a_process_takes_what_is_estimated(fields: dict[str, Any], tokens: int) -> None:
    """On CPU, in float32, by the peak of its resident memory; within a third."""
    command = [sys.executable, "-c", PEAK, "llama", repr(fields), str(tokens)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    before, after = map(int, done.stdout.split())
    shape = shape_of({"model_type": "llama", **fields}, "llama")
    estimate = 4 * shape.num_parameters + 20 * lora_parameters(shape, RANK)
    estimate += tokens * kept_bytes(shape, RANK, own_kernels=True) + 8 * max(1 << 22, 128 * shape.vocab_size)
    print(f"{(after - before) / GIB:.2f} GiB taken, {estimate / GIB:.2f} estimated")
    assert 0.75 * estimate <= after - before <= 1.33 * estimate
