"""How far the first steps of LoRA DPO move a model of random weights, by learning rate and shape of the model.

    python benchmarks/learning_rate.py 256,704,4,4,2 896,4864,24,14,2 [--rates 1e-6 1e-4] [--steps 1]

A shape is hidden size, intermediate size, layers, heads and key-value heads; the vocabulary is 4 096. Every step is on
the same 8 random pairs of 48 tokens. Prints a table; asserts nothing.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence

from random_models import learner_on, random_pairs, save_llama, shape

from online_dpo.config.learner import LearnerSection


def step_random(numbers: Sequence[int], rates: Sequence[str], *, steps: int) -> None:
    """Nats that the chosen answers of a batch gain on the rejected ones with each step on it: a row for a rate."""
    hidden, layers = numbers[0], numbers[2]
    pairs = random_pairs(8, vocab_size=4096)
    with tempfile.TemporaryDirectory() as folder:
        save_llama(folder, shape(numbers))
        for rate in rates:
            section = LearnerSection(lr=float(rate), batch_pairs=len(pairs), epochs=steps + 1)
            learner = learner_on(folder, section)
            items = learner.reference_logps(pairs, (None,))
            learner.begin_round(0, items)
            found = [learner.step(step) for step in range(steps + 1)]
            moved = [f"{figures['reward_margin'] / 0.1:.5f}" for figures in found[1:]]
            print(f"| {hidden}, {layers} | {rate} | {', '.join(moved)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shapes", nargs="+")
    parser.add_argument("--rates", nargs="+", default=["1e-6"])
    parser.add_argument("--steps", type=int, default=1)
    args = parser.parse_args()
    print("| hidden size, layers | lr | nats gained after each step |\n|---|---|---|")
    for numbers in args.shapes:
        step_random([int(part) for part in numbers.split(",")], args.rates, steps=args.steps)


if __name__ == "__main__":
    main()
