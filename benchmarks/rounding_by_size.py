"""What rounding to bfloat16 leaves of the first updates, by shape of the model: how far sampler and learner are apart.

    python benchmarks/rounding_by_size.py 256,704,4,4,2 896,4864,24,14,2 [--steps 2 8] [--pairs 4]

A shape is hidden size, intermediate size, layers, heads and key-value heads; the vocabulary is 4 096. The models have
random weights, stored in bfloat16, and the learner takes steps in float32 with the rate that `auto` gives, always on
the same random pairs. Prints a row for each number of steps; asserts nothing.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from random_models import learner_on, random_pairs, save_llama, shape
from roundings import kl_of_roundings
from transformers import AutoModelForCausalLM

from online_dpo.commands.preparing.learning_rates import automatic_lr
from online_dpo.config.learner import LearnerSection, LoraSection
from online_dpo.models.merging import Share, merged_tensors
from online_dpo.types import Row


def by_shape(numbers: Sequence[int], steps: Sequence[int], num_pairs: int) -> None:
    """A row for each number of steps."""
    hidden, layers = numbers[0], numbers[2]
    rate = automatic_lr(hidden_size=hidden, num_layers=layers, alpha=LoraSection().alpha)
    trained, others = (random_pairs(num_pairs, vocab_size=4096, seed=seed) for seed in (0, 1))
    rows = [Row.of(pair.prompt, pair.chosen) for pair in others]
    with tempfile.TemporaryDirectory() as folder:
        save_llama(folder, shape(numbers), dtype="bfloat16")
        learner = learner_on(folder, LearnerSection(lr=rate, batch_pairs=num_pairs, epochs=max(steps)))
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        learner.begin_round(0, learner.reference_logps(trained, (None,)))
        for step in range(max(steps)):
            learner.step(step)
            if step + 1 in steps:
                adapter, share = learner.policy(1), Share()
                for _ in merged_tensors(Path(folder), adapter, dtype=torch.bfloat16, share=share):
                    pass
                kl = kl_of_roundings(model, Path(folder), adapter, rows)
                shown = [f"{kl[name]:.1e}" for name in ("update", "nearest", "stochastic")]
                print(
                    f"| {hidden}, {layers} | {rate:g} | {step + 1} | {share.value():.2f} | {' | '.join(shown)} |",
                    flush=True,
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shapes", nargs="+")
    parser.add_argument("--steps", type=int, nargs="+", default=[2, 8])
    parser.add_argument("--pairs", type=int, default=4)
    args = parser.parse_args()
    print(
        "| hidden size, layers | lr | steps | applied | KL of the update | nearest | stochastic |\n" + "|---" * 7 + "|"
    )
    for numbers in args.shapes:
        by_shape([int(part) for part in numbers.split(",")], args.steps, args.pairs)


if __name__ == "__main__":
    main()
