"""The arithmetic task: a small Llama of random weights with a tokenizer of characters, and sums in its alphabet.

    python benchmarks/online_or_offline/arithmetic.py OUT_FOLDER

writes what `configs/arithmetic-sft.yaml` and `configs/arithmetic.yaml` read; `study.py` beside it plays both.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
ALPHABET = "0123456789+-="
SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>")
HIDDEN, LAYERS = 128, 4


def examples() -> dict[str, list[dict[str, str]]]:
    """Every sum of two numbers below 100 and every difference that is not negative, each in at most one of the files.

    The online rounds see no difference, so `differences` tells what training on sums does to something else.

    Returns:
        `demonstrations` for SFT, `prompts` of online rounds, and what is held out: `heldout` sums and `differences`.
    """
    sums = [(f"{a}+{b}=", str(a + b)) for a in range(100) for b in range(100)]
    differences = [(f"{a}-{b}=", str(a - b)) for a in range(100) for b in range(a + 1)]
    draw = random.Random(0)
    draw.shuffle(sums)
    draw.shuffle(differences)
    shown = [*sums[:6000], *differences[:3000]]
    draw.shuffle(shown)
    asked = {"prompts": sums[6000:9500], "heldout": sums[9500:], "differences": differences[3000:3500]}
    return {
        "demonstrations": [{"prompt": prompt, "completion": answer} for prompt, answer in shown],
        **{name: [{"prompt": prompt, "answer": answer} for prompt, answer in rows] for name, rows in asked.items()},
    }


def make_task(folder: Path) -> None:
    """Write the examples and the model of random weights; the same files every time."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in examples().items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    save_model(folder / "random")


def make_policy(folder: Path, runs: Path) -> dict[str, Path]:
    """The task with its policy, which an SFT run makes; what is there stays.

    Args:
        folder: of the task's files.
        runs: where the SFT run's directory is.

    Returns:
        `model`, `prompts` and the held-out sets by name.
    """
    if not (folder / "random" / "config.json").exists():
        make_task(folder)
    policy = folder / "policy"
    if not policy.exists():
        fields = {
            "run.dir": runs,
            "model.path": folder / "random",
            "pairs.source": folder / "demonstrations.jsonl",
            "learner.threads": 1,
        }
        arguments = [
            str(ROOT / "configs" / "arithmetic-sft.yaml"),
            *(f"{key}={value}" for key, value in fields.items()),
        ]
        for command in (["run", *arguments], ["export", str(runs / "arithmetic-sft"), str(policy), "--merge"]):
            subprocess.run([sys.executable, "-m", "online_dpo.cli", *command], check=True)
    files = {name: folder / f"{name}.jsonl" for name in ("prompts", "heldout", "differences")}
    return {"model": policy, **files}


def save_tokenizer(folder: Path) -> Any:
    """A token for each character; a prompt begins with BOS, and nothing is appended."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: i for i, token in enumerate((*SPECIAL_TOKENS, *ALPHABET))}
    pad, bos, eos = SPECIAL_TOKENS
    characters = Tokenizer(models.WordLevel(vocabulary, unk_token=pad))
    characters.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    characters.decoder = decoders.Fuse()
    characters.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, 1)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=characters, pad_token=pad, bos_token=bos, eos_token=eos)
    tokenizer.save_pretrained(folder)
    return tokenizer


def save_model(folder: Path) -> None:
    """A Llama of 1 M parameters with the weights of seed 0."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    vocab_size = len(save_tokenizer(folder))
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=HIDDEN,
            intermediate_size=4 * HIDDEN,
            num_hidden_layers=LAYERS,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=64,
            tie_word_embeddings=True,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    )
    # LoRA leaves the embeddings, which are the head too, as they are; too short ones could not make a token certain.
    torch.nn.init.normal_(model.model.embed_tokens.weight, std=0.1)
    model.save_pretrained(folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    make_task(parser.parse_args().out)
