"""The learner's step, beside TRL's `DPOTrainer` on the same pairs; and packed rows against rows of their own.

    python benchmarks/gpu_steps/learner.py packed|ours|separate|trl --folder FOLDER [--tiny]

Weights are made on the device in bfloat16, and LoRA is float32 on both sides, with checkpointing of activations.
"""

from __future__ import annotations

import gc
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shapes import EOS, SHAPES, arguments, expect, random_adapter, random_ids, random_model, step

WORK = {"8b": (8, 512, 256), "tiny": (2, 24, 12)}
"""Shape -> pairs, tokens of a prompt, tokens of a completion."""

STEPS = 4  # the first of which does not count

PEAK_FLOPS = {
    "H200": 989e12, "H100 PCIe": 756e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "A10": 125e12,
    "RTX 4090": 165e12, "RTX 3090": 71e12,
}  # fmt: skip
"""Dense bfloat16 products per second by the makers' data sheets; the first whose name is part of the GPU's."""


def main() -> None:
    args = arguments(["packed", "ours", "separate", "trl"])
    if args.what == "packed":
        with step("packed attention") as figures:
            packed("tiny" if args.tiny else "0.5b", figures)
        return
    shape = "tiny" if args.tiny else "8b"
    names = {"ours": "learner, 8 B", "separate": "learner with padded rows, 8 B", "trl": "TRL's DPOTrainer, 8 B"}
    with step(names[args.what]) as figures:
        layout = "separate" if args.what == "separate" else "auto"
        seconds = trl(shape) if args.what == "trl" else ours(shape, layout)
        figures |= rates(shape, seconds, prompts=1 if args.what == "ours" else 2)


def packed(shape: str, figures: dict[str, Any]) -> None:
    """Log-probs and gradients of packed rows are those of separate, padded ones, up to bfloat16's rounding."""
    import torch

    from online_dpo.config.learner import LearnerSection
    from online_dpo.learner.forward import Forward
    from online_dpo.types import Row

    prompts = [random_ids(shape, 64 + 8 * i, seed=i) for i in range(4)]
    rows = [Row(prompt_ids=p, completion_ids=random_ids(shape, 24 + j, seed=50 + j)) for p in prompts for j in (0, 1)]
    found: dict[str, tuple[Any, Any]] = {}
    for name, dtype, layout in (("exact", torch.float32, "separate"), ("rows", torch.bfloat16, "separate"),
                                ("packed", torch.bfloat16, "shared")):  # fmt: skip
        model, _ = random_adapter(random_model(shape, dtype=torch.bfloat16), Path(tempfile.mkdtemp()), scale=0.02)
        for parameter_name, parameter in model.named_parameters():
            parameter.requires_grad_("lora_" in parameter_name)
            if "lora_" not in parameter_name:
                parameter.data = parameter.data.to(dtype)
        autocast = "off" if name == "exact" else "bfloat16"
        forward = Forward(model, LearnerSection(layout=layout, autocast=autocast))
        expect(not forward.notices, " ".join(forward.notices))
        found[name] = values_and_gradients(forward, rows)
        figures[f"{name}, s"] = timed(lambda forward=forward: values_and_gradients(forward, rows))
        if name == "packed":  # a kernel that is compiled anew for other lengths would cost more than it gains
            others = [rows[i : i + 2 + i % 3] for i in range(6)]
            took = [timed(lambda forward=forward, some=some: values_and_gradients(forward, some)) for some in others]
            figures |= {
                "packed, other lengths: slowest, s": max(took),
                "packed, other lengths: median, s": statistics.median(took),
            }
        del model, forward
        gc.collect()
        torch.cuda.empty_cache()
    for part, what in enumerate(("log-probs", "gradients")):
        exact = found["exact"][part]
        errors = {name: ((found[name][part] - exact).norm() / exact.norm()).item() for name in ("rows", "packed")}
        figures |= {f"{what}: error of {name}": error for name, error in errors.items()}
        expect(errors["packed"] <= 2 * errors["rows"] + 1e-3, f"{what} of packed rows round more than twice as much")


def values_and_gradients(forward: Any, rows: list[Any]) -> tuple[Any, Any]:
    """Log-probs of all tokens, and the gradient of a sum in which they count differently, both flat."""
    import torch

    logps = torch.cat(forward.token_logps(rows, training=True).logps)
    weights = torch.linspace(-1.0, 2.0, len(logps), device=logps.device)
    gradients = torch.autograd.grad((logps * weights).sum(), forward.trained)
    return logps.detach().float(), torch.cat([gradient.flatten().float() for gradient in gradients])


def timed(work: Callable[[], Any]) -> float:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    begun = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - begun


def texts(shape: str) -> list[tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]:
    """Ids of prompt, chosen and rejected; completions end in EOS, which TRL would append."""
    pairs, prompt, completion = WORK[shape]

    def answer(seed: int) -> tuple[int, ...]:
        return (*random_ids(shape, completion - 1, seed=seed), EOS)

    return [(random_ids(shape, prompt, seed=3 * i), answer(3 * i + 1), answer(3 * i + 2)) for i in range(pairs)]


def ours(shape: str, layout: str) -> list[float]:
    """Seconds of each step with its reference pass."""
    import torch

    from online_dpo.config.learner import LearnerSection, LoraSection
    from online_dpo.config.objective.pairwise import SigmoidObjective
    from online_dpo.learner import learner as learner_module
    from online_dpo.learner.learner import Learner, LearnerSpec
    from online_dpo.types import Completion, Pair, Prompt

    # In the place of a model from a folder: 16 GB that need not be written.
    model = random_model(shape, dtype=torch.bfloat16).requires_grad_(False)
    learner_module.load_model = lambda *_, **__: model  # type: ignore[assignment]
    section = LearnerSection(lr=1e-5, batch_pairs=WORK[shape][0], layout=layout, activation_checkpointing=True)
    learner = Learner(
        LearnerSpec(
            model_folder="none", model_name="random", dtype="bfloat16", trust_remote_code=False,
            lora=LoraSection(r=16, alpha=32), adapter=None, learner=section,
            objective=SigmoidObjective(type="sigmoid", beta=0.1), seed=0, rounds=10**6, threads=None,
        )
    )  # fmt: skip
    expect(not learner.notices(), " ".join(learner.notices()))

    def answer(index: int, sample: int, ids: tuple[int, ...]) -> Completion:
        return Completion(
            prompt_id=str(index), sample_index=sample, token_ids=ids, text="", finish_reason="stop",
            sampler_logps=(0.0,) * len(ids), policy_version=0, seed=0,
        )  # fmt: skip

    pairs = [
        Pair(
            prompt=Prompt(prompt_id=str(i), token_ids=prompt, text=""),
            chosen=answer(i, 0, chosen), rejected=answer(i, 1, rejected), margin=1.0, probability=0.7,
        )
        for i, (prompt, chosen, rejected) in enumerate(texts(shape))
    ]  # fmt: skip

    def take(index: int) -> None:
        learner.begin_round(index, learner.reference_logps(pairs, [None]))
        figures = learner.step(0)
        expect(not figures["skipped"], f"the step was skipped: {figures.get('bad_value')}")

    return [timed(lambda index=index: take(index)) for index in range(STEPS)]


def trl(shape: str) -> list[float]:
    """Seconds of each step of TRL's trainer, which takes its reference pass inside."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, TrainerCallback
    from trl import DPOConfig, DPOTrainer

    names = {0: "<pad>", 1: "<bos>", EOS: "<eos>"}
    words = {names.get(i, f"w{i}"): i for i in range(SHAPES[shape]["vocab_size"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    seconds: list[float] = []

    class Clock(TrainerCallback):
        begun = 0.0

        def on_step_begin(self, _args: Any, state: Any, control: Any, **_: Any) -> None:
            self.begun = self.now()

        def on_step_end(self, _args: Any, state: Any, control: Any, **_: Any) -> None:
            seconds.append(self.now() - self.begun)

        def now(self) -> float:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            return time.perf_counter()

    def text(ids: tuple[int, ...]) -> str:
        return " ".join("<eos>" if token == EOS else f"w{token}" for token in ids)

    pairs = WORK[shape][0]
    rows = [
        {"prompt": text(prompt), "chosen": " " + text(chosen), "rejected": " " + text(rejected)}
        for prompt, chosen, rejected in texts(shape)
    ]
    at_once = min(2, pairs)
    DPOTrainer(
        model=random_model(shape, dtype=torch.bfloat16),
        args=DPOConfig(
            output_dir=tempfile.mkdtemp(), use_cpu=not torch.cuda.is_available(), per_device_train_batch_size=at_once,
            gradient_accumulation_steps=pairs // at_once, max_steps=STEPS, learning_rate=1e-5, max_length=None,
            beta=0.1, bf16=True, gradient_checkpointing=True, report_to="none", save_strategy="no",
            logging_steps=10**6, disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>"
        ),
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
        callbacks=[Clock()],
    ).train()  # fmt: skip
    return seconds


def rates(shape: str, seconds: list[float], *, prompts: int) -> dict[str, float]:
    """Seconds per step and what follows from them; MFU where the GPU's peak is known.

    Args:
        shape: of the model.
        seconds: of each step; the first is left out.
        prompts: how often a pair's prompt is computed.
    """
    import torch

    pairs, prompt, completion = WORK[shape]
    took = statistics.median(seconds[1:])
    found = {"s per step": took, "tokens/s": pairs * 2 * (prompt + completion) / took}
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
        peak = next((flops for part, flops in PEAK_FLOPS.items() if part in name), None)
        if peak is not None:
            found["MFU"] = step_flops(SHAPES[shape], WORK[shape], prompts=prompts) / took / peak
        found["peak GiB"] = torch.cuda.max_memory_allocated() / 2**30
    return found


def step_flops(shape: dict[str, Any], work: tuple[int, int, int], *, prompts: int) -> float:
    """Products of one step: reference pass, forward, backward without gradients of frozen weights.

    The decoder's linear layers over every token, attention's two products over what each token sees, and the head over
    completion tokens. What checkpointing computes twice does not count.
    """
    hidden, layers = shape["hidden_size"], shape["num_hidden_layers"]
    keys = hidden * shape["num_key_value_heads"] // shape["num_attention_heads"]
    weights = layers * (2 * hidden * hidden + 2 * hidden * keys + 3 * hidden * shape["intermediate_size"])
    pairs, prompt, completion = work
    tokens = prompts * prompt + 2 * completion
    seen = prompts * prompt**2 / 2 + 2 * (completion * prompt + completion**2 / 2)
    head = 2 * hidden * shape["vocab_size"] * 2 * completion
    return float(pairs * 3 * (2 * weights * tokens + 4 * hidden * layers * seen + head))


if __name__ == "__main__":
    main()
