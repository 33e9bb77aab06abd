"""Random models in known shapes, rows and adapters for them, and how a step reports what it found.

`python benchmarks/gpu_steps/shapes.py SHAPE --folder FOLDER` writes a model to a folder of its shape's name.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

EOS = 2
MARK = "gpu-check "

SHAPES: dict[str, dict[str, Any]] = {
    # Llama 3.1 8B; Qwen2 0.5B without its biases; and something that a CPU takes in no time.
    "8b": {
        "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "initializer_range": 0.01,
    },
    "0.5b": {
        "vocab_size": 151936, "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
        "num_attention_heads": 14, "num_key_value_heads": 2, "initializer_range": 0.02, "tie_word_embeddings": True,
    },
    "tiny": {
        "vocab_size": 512, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.08, "tie_word_embeddings": True,
    },
}  # fmt: skip


class Failed(Exception):
    """A step found something wrong."""


def expect(holds: bool, otherwise: str) -> None:
    """Raises Failed unless something holds."""
    if not holds:
        raise Failed(otherwise)


@contextmanager
def step(name: str) -> Iterator[dict[str, Any]]:
    """A step, which puts its figures into the dictionary; whatever it raises is reported, and the next one goes on."""
    figures: dict[str, Any] = {}
    begun, result, detail = time.perf_counter(), "ok", ""
    try:
        yield figures
    except Skipped as reason:
        result, detail = "skipped", str(reason)
    except (Exception, SystemExit) as error:
        traceback.print_exc()
        result, detail = "failed", f"{type(error).__name__}: {' '.join(str(error).split())}"[:400]
    seconds = time.perf_counter() - begun
    told = {"name": name, "result": result, "seconds": seconds, "detail": detail, "figures": figures}
    print("\n" + MARK + json.dumps(told), flush=True)


class Skipped(Exception):
    """A step cannot run here, and need not."""


def arguments(choices: Sequence[str], parser: argparse.ArgumentParser | None = None) -> argparse.Namespace:
    parser = parser or argparse.ArgumentParser()
    parser.add_argument("what", choices=choices)
    parser.add_argument("--folder", type=Path, required=True, help="where models are written")
    parser.add_argument("--tiny", action="store_true")
    return parser.parse_args()


def device() -> Any:
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def random_model(shape: str, *, dtype: Any, on: Any = None) -> Any:
    """A Llama of random weights, made where it stays."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": EOS, "max_position_embeddings": 4096}
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with on or device():
            return LlamaForCausalLM(LlamaConfig(**SHAPES[shape], **special)).eval()
    finally:
        torch.set_default_dtype(before)


def saved_model(shape: str, folder: Path) -> Path:
    """Where a model of a shape lies; made in a process of its own, which gives the GPU back."""
    if not (folder / shape / "done").exists():
        subprocess.run([sys.executable, __file__, shape, "--folder", str(folder)], check=True)
    return folder / shape


def save(shape: str, folder: Path) -> None:
    """Write model and tokenizer. A token is a word `w17`, so that ids survive every way through text."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    random_model(shape, dtype=torch.bfloat16).save_pretrained(folder)
    names = {0: "<pad>", 1: "<bos>", EOS: "<eos>"}
    words = {names.get(i, f"w{i}"): i for i in range(SHAPES[shape]["vocab_size"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>"
    ).save_pretrained(folder)
    (folder / "done").touch()


def random_ids(shape: str, count: int, *, seed: int) -> tuple[int, ...]:
    rng = random.Random(seed)
    return tuple(rng.randrange(3, SHAPES[shape]["vocab_size"]) for _ in range(count))


def random_adapter(model: Any, folder: Path, *, scale: float) -> Any:
    """Put LoRA on every linear layer and fill its B with noise; (the model with it, `types.Adapter`)."""
    import torch
    from peft import LoraConfig, get_peft_model

    from online_dpo.types import Adapter

    torch.manual_seed(1)
    config = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    policy = get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=scale)
    policy.save_pretrained(folder)
    files = ("adapter_config.json", "adapter_model.safetensors")
    return policy.eval(), Adapter.from_files(1, {name: (folder / name).read_bytes() for name in files})


if __name__ == "__main__":
    args = arguments(list(SHAPES))
    save(args.what, args.folder / args.what)
