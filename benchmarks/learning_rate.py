"""How far the first steps of LoRA DPO move a model of random weights, by learning rate and shape of the model.

    python benchmarks/learning_rate.py 256,704,4,4,2 896,4864,24,14,2 [--rates 1e-6 1e-4] [--steps 1]

A shape is hidden size, intermediate size, layers, heads and key-value heads; the vocabulary is 4 096. Every step is on
the same 8 random pairs of 48 tokens. Prints a table; asserts nothing.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from online_dpo.config.learner import LearnerSection
from online_dpo.config.objective.pairwise import SigmoidObjective
from online_dpo.learner.learner import Learner
from online_dpo.learner.spec import LearnerSpec
from online_dpo.types import Completion, Pair, Prompt


def random_pairs(count: int, *, vocab_size: int, length: int = 48, seed: int = 0) -> list[Pair]:
    """Pairs of random tokens."""
    draw = torch.Generator().manual_seed(seed)

    def answer(prompt_id: str, index: int) -> Completion:
        ids = tuple(torch.randint(3, vocab_size, (length,), generator=draw).tolist())
        return Completion(
            prompt_id=prompt_id,
            sample_index=index,
            token_ids=ids,
            text="",
            finish_reason="length",
            sampler_logps=(0.0,) * length,
            policy_version=0,
            seed=0,
        )

    prompts = [Prompt(prompt_id=str(i), token_ids=(1, 3 + i, 4 + i, 5 + i), text="") for i in range(count)]
    return [
        Pair(prompt=p, chosen=answer(p.prompt_id, 0), rejected=answer(p.prompt_id, 1), margin=1.0, probability=0.7)
        for p in prompts
    ]


def step_random(shape: Sequence[int], rates: Sequence[str], *, steps: int) -> None:
    """Nats that the chosen answers of a batch gain on the rejected ones with each step on it: a row for a rate."""
    hidden, intermediate, layers, heads, kv_heads = shape
    pairs = random_pairs(8, vocab_size=4096)
    with tempfile.TemporaryDirectory() as folder:
        LlamaForCausalLM(
            LlamaConfig(
                vocab_size=4096,
                hidden_size=hidden,
                intermediate_size=intermediate,
                num_hidden_layers=layers,
                num_attention_heads=heads,
                num_key_value_heads=kv_heads,
                tie_word_embeddings=True,
            )
        ).save_pretrained(folder)
        for rate in rates:
            section = LearnerSection(lr=float(rate), batch_pairs=len(pairs), epochs=steps + 1)
            learner = Learner(
                LearnerSpec(
                    model_folder=folder,
                    model_name="random",
                    dtype="float32",
                    trust_remote_code=False,
                    lora=None,
                    adapter=None,
                    learner=section,
                    objective=SigmoidObjective(type="sigmoid"),
                    seed=0,
                    rounds=1,
                    threads=None,
                )
            )
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
    for shape in args.shapes:
        step_random([int(part) for part in shape.split(",")], args.rates, steps=args.steps)


if __name__ == "__main__":
    main()
