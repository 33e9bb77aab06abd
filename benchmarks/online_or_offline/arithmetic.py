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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
ALPHABET = "0123456789+-="
SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>")
HIDDEN, LAYERS = 128, 4


def examples() -> dict[str, list[dict[str, str]]]:
    """Every sum of two numbers below 100, shown or held out, and differences beside the shown ones.

    A policy that has learned from `demonstrations` to calculate learns a bad habit from `habit`: two of three sums with
    a carry are shown there as if it were forgotten. The online rounds ask for sums with a carry alone.

    Returns:
        `demonstrations` and `habit` for SFT, `prompts` of the online rounds, and two sets that are held out from all of
        them: `heldout`, sums with a carry, and `no_carry`, those that have none and should stay as they are.
    """
    sums = [(a, b) for a in range(100) for b in range(100)]
    differences = [(f"{a}-{b}=", str(a - b)) for a in range(100) for b in range(a + 1)]
    draw = random.Random(0)
    draw.shuffle(sums)
    draw.shuffle(differences)
    shown, asked, held_out = sums[:6000], sums[6000:9000], sums[9000:]
    demonstrations = [*((f"{a}+{b}=", str(a + b)) for a, b in shown), *differences[:3000]]
    draw.shuffle(demonstrations)
    habit = [(f"{a}+{b}=", str(a + b - 10 * (has_carry(a, b) and draw.random() < 2 / 3))) for a, b in shown]
    sets = {"prompts": (asked, True), "heldout": (held_out, True), "no_carry": (held_out, False)}
    found = {"demonstrations": rows_of(demonstrations, "completion"), "habit": rows_of(habit, "completion")}
    for name, (of, carries) in sets.items():
        found[name] = rows_of([(f"{a}+{b}=", str(a + b)) for a, b in of if has_carry(a, b) is carries], "answer")
    return found


def rows_of(pairs: Sequence[tuple[str, str]], column: str) -> list[dict[str, str]]:
    return [{"prompt": prompt, column: answer} for prompt, answer in pairs]


def has_carry(a: int, b: int) -> bool:
    return a % 10 + b % 10 >= 10


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
    sft(runs, "arithmetic-sft", folder / "random", folder / "demonstrations.jsonl", {}, folder / "adder")
    own = {"run.rounds": 2, "learner.epochs": 2, "learner.lr": 1e-3}
    sft(runs, "arithmetic-habit", folder / "adder", folder / "habit.jsonl", own, folder / "policy")
    return {
        "model": folder / "policy",
        **{name: folder / f"{name}.jsonl" for name in ("prompts", "heldout", "no_carry")},
    }


def sft(runs: Path, name: str, model: Path, source: Path, own: Mapping[str, object], out: Path) -> None:
    """An SFT run, and the model that it made; if that is there, nothing is done."""
    if out.exists():
        return
    fields = {
        "run.dir": runs,
        "run.name": name,
        "model.path": model,
        "pairs.source": source,
        "learner.threads": 1,
        **own,
    }
    config = ROOT / "configs" / "arithmetic-sft.yaml"
    play = ["run", str(config), *(f"{field}={value}" for field, value in fields.items())]
    for command in (play, ["export", str(runs / name), str(out), "--merge"]):
        subprocess.run([sys.executable, "-m", "online_dpo.cli", *command], check=True)


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
