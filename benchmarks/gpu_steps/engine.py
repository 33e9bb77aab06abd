"""One vLLM engine against transformers and PEFT: after a push, and after a sleep. No Ray.

python benchmarks/gpu_steps/engine.py merge|lora|nf4 --folder FOLDER [--tiny]
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import Any

from shapes import Skipped, arguments, device, expect, random_adapter, random_ids, saved_model, step

TOLERANCE = 5e-2  # nats per token, as a run with a bfloat16 model has it
SCALE = 0.02  # of the adapter's B: an update that moves log-probs by much more than rounding does


def main() -> None:
    args = arguments(["merge", "lora", "nf4"])
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    shape = "tiny" if args.tiny else "0.5b"
    if args.what == "nf4":
        with step("push to an nf4 base") as figures:
            quantised(shape, saved_model(shape, args.folder), figures)
        return
    made: dict[str, Any] = {}
    with step(f"push by {args.what}") as figures:
        made |= push(args.what, shape, saved_model(shape, args.folder), figures)
    with step(f"sleep, push by {args.what}") as figures:
        expect(bool(made), "there is no engine: the push failed")
        sleep_and_wake(made, figures)


def rows_of(shape: str) -> list[Any]:
    from online_dpo.types import Row

    return [
        Row(prompt_ids=random_ids(shape, 48, seed=i), completion_ids=random_ids(shape, 32, seed=100 + i))
        for i in range(8)
    ]


def engine(folder: Path, *, weight_push: str, **options: Any) -> Any:
    """The generator of a run, in this process."""
    from actors.generator import EngineSpec, Generator

    targets = ("down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj")
    return Generator(
        EngineSpec(
            model_folder=str(folder), trust_remote_code=False, dtype="bfloat16", max_model_len=256, max_num_seqs=64,
            weight_push=weight_push, lora_rank=16, lora_targets=targets, tensor_parallel=1, eos_token_ids=(2,),
            gpu_memory_utilization=0.4, block_size=None, enforce_eager=True, seed=0, sleeps=True, **options,
        )
    )  # fmt: skip


def logps(model: Any, rows: list[Any]) -> list[list[float]]:
    """Plain transformers, one unpadded row at a time."""
    import torch

    found = []
    with torch.no_grad():
        for row in rows:
            ids = torch.tensor([row.prompt_ids + row.completion_ids], device=next(model.parameters()).device)
            table = model(input_ids=ids).logits[0].float().log_softmax(-1)
            start = len(row.prompt_ids) - 1
            found.append([table[start + i, token].item() for i, token in enumerate(row.completion_ids)])
    return found


def push(kind: str, shape: str, folder: Path, figures: dict[str, Any]) -> dict[str, Any]:
    """The engine's log-probs after a push are those of PEFT; sampled tokens' too."""
    import torch
    from transformers import AutoModelForCausalLM

    from online_dpo.loop.weight_sync import Gap
    from online_dpo.types import Prompt, Row, SamplingPlan, Shard

    rows = rows_of(shape)
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).to(device())
    policy, adapter = random_adapter(base, Path(tempfile.mkdtemp()), scale=SCALE)
    expected = logps(policy, rows)
    generator = engine(folder, weight_push=kind)
    generator.push(None, 0)
    before = generator.probe(rows)
    begun = time.perf_counter()
    generator.push(adapter, 1)
    figures["push, s"] = time.perf_counter() - begun
    found = generator.probe(rows)
    gap, moved = Gap.between(found, expected), Gap.between(found, before)
    figures |= {
        "nats per token from PEFT": gap.mean,
        "what the adapter moves": moved.mean,
    }
    figures["PEFT's own rounding"] = Gap.between(expected, logps(policy.float(), rows)).mean
    policy.bfloat16()
    expect(gap.mean <= TOLERANCE, f"{gap.mean:.3g} nats per token from PEFT, and {TOLERANCE} are allowed")
    expect(moved.mean > 4 * gap.mean, "the adapter moves too little to tell it from rounding")
    prompts = [Prompt(prompt_id=str(i), token_ids=row.prompt_ids, text="") for i, row in enumerate(rows)]
    plan = SamplingPlan(
        purpose="training", round_index=0, num_samples=2, temperature=1.0, top_p=1.0, max_tokens=32, stop=(), run_seed=0
    )
    shard = Shard(index=0, prompts=tuple(prompts))
    sampled = generator.sample(shard, plan, 1)
    again = [Row(prompt_ids=rows[int(c.prompt_id)].prompt_ids, completion_ids=c.token_ids) for c in sampled]
    figures["of sampled tokens"] = (gap := Gap.between([c.sampler_logps for c in sampled], logps(policy, again))).mean
    expect(gap.mean <= TOLERANCE, f"sampled tokens are {gap.mean:.3g} nats from PEFT, and {TOLERANCE} are allowed")
    return {"generator": generator, "adapter": adapter, "rows": rows, "found": found, "shard": shard, "plan": plan}


def sleep_and_wake(made: dict[str, Any], figures: dict[str, Any]) -> None:
    """After a sleep nothing is sampled before a push, and after the push all is as it was."""
    from online_dpo.errors import WeightMismatchError
    from online_dpo.loop.weight_sync import Gap

    generator, rows, before = made["generator"], made["rows"], made["found"]
    free, begun = free_bytes(), time.perf_counter()
    generator.sleep()
    figures["fall asleep, s"] = time.perf_counter() - begun
    if free is not None:
        figures["freed, GiB"] = (free_bytes() - free) / 2**30
        expect(figures["freed, GiB"] > 1.0, "the sleep freed no memory of the GPU")
    begun = time.perf_counter()
    generator.wake()
    figures["wake, s"] = time.perf_counter() - begun
    # What a run never looks at: is anything left of the weights before they are pushed again?
    figures["nats per token before the push"] = Gap.between(generator.probe(rows), before).mean
    try:
        generator.sample(made["shard"], made["plan"], 1)
    except WeightMismatchError:
        pass
    else:
        raise AssertionError("the engine sampled without a push")
    begun = time.perf_counter()
    generator.push(made["adapter"], 1)
    figures["push, s"] = time.perf_counter() - begun
    gap = Gap.between(generator.probe(rows), before)
    figures["after it"] = gap.mean
    expect(gap.mean <= TOLERANCE, f"{gap.mean:.3g} nats per token from before the sleep, {TOLERANCE} are allowed")
    generator.sample(made["shard"], made["plan"], 1)


def free_bytes() -> int | None:
    import torch

    return torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else None


def quantised(shape: str, folder: Path, figures: dict[str, Any]) -> None:
    """What `model.quantization: nf4` will find between engine and learner."""
    import importlib.util

    import torch

    from online_dpo.learner.frozen_models import ModelSource, load_model
    from online_dpo.loop.weight_sync import Gap

    missing = [name for name in ("bitsandbytes", "vllm_bnb_plugin") if importlib.util.find_spec(name) is None]
    if missing or not torch.cuda.is_available():
        raise Skipped("there is no GPU" if not missing else f"{missing[0]} is not installed")
    source = ModelSource(field="model.path", name="random", folder=str(folder), trust_remote_code=False)
    base = load_model(source, dtype="bfloat16", device=device(), quantization="nf4")
    figures["learner's base, GiB"] = torch.cuda.memory_allocated() / 2**30
    rows = rows_of(shape)
    policy, adapter = random_adapter(base, Path(tempfile.mkdtemp()), scale=SCALE)
    expected = logps(policy, rows)
    generator = engine(folder, weight_push="lora", quantization="nf4")
    generator.push(None, 0)
    before = generator.probe(rows)
    generator.push(adapter, 1)
    found = generator.probe(rows)
    gap, moved = Gap.between(found, expected), Gap.between(found, before)
    figures |= {"nats per token from the learner": gap.mean, "worst row": gap.row_max}
    figures["what the adapter moves"] = moved.mean
    expect(gap.mean <= TOLERANCE, f"{gap.mean:.3g} nats per token apart, and {TOLERANCE} are allowed")
    expect(moved.mean > gap.mean, "the adapter moves too little to tell it from the gap")


if __name__ == "__main__":
    main()
