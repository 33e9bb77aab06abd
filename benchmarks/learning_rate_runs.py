"""What trained models of several sizes learn in a few rounds, by learning rate.

    python benchmarks/learning_rate_runs.py train REVIEWS OUT --shape 320,880,5,5,5,64 --minutes 6
    python benchmarks/learning_rate_runs.py runs embedded:policy OUT ... --rates auto 2e-4 --rounds 3

`train` makes a small Llama of the review corpus with the embedded policy's tokenizer; a shape is hidden size,
intermediate size, layers, heads, key-value heads, head size. `runs` plays rounds of the reviews task with everything
but the rate at its default, and prints a row for each model and rate; it asserts nothing.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from online_dpo import load_config, run
from online_dpo.embedded import resolve


def train(reviews_file: Path, out: Path, shape: list[int], minutes: float) -> None:
    """A language model of reviews; its rate follows the clock, so more minutes make a better one."""
    from tokenizers import Tokenizer
    from transformers import LlamaForCausalLM

    from tools.embedded import training
    from tools.embedded.build import save_model
    from tools.embedded.corpus import load_reviews

    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    small = training.new_policy

    def of_shape(tokenizer: Tokenizer) -> LlamaForCausalLM:
        config = small(tokenizer).config
        config.update({**dict(zip(names, shape, strict=False)), "head_dim": shape[5]})
        return LlamaForCausalLM(config)

    training.new_policy = of_shape  # type: ignore[assignment]
    tokenizer = Tokenizer.from_file(str(resolve("policy") / "tokenizer.json"))
    reviews = load_reviews(reviews_file)
    learned = [review for review in reviews if review.split == "train"]
    heldout = [review for review in reviews if review.split == "heldout"][:8]
    model, figures = training.train_policy(
        learned, heldout, tokenizer, minutes=minutes, steps=100_000, seed=0, batch_tokens=2048, evaluate_every=100_000
    )
    tokens = sum(len(tokenizer.encode(review.text, add_special_tokens=False).ids) + 1 for review in heldout)
    out.mkdir(parents=True, exist_ok=True)
    save_model(model, out)
    training.save_tokenizer(tokenizer, out, padding_side="left")
    print(f"{model.num_parameters()} parameters, {figures['steps']} steps, {figures['heldout_nats'] / tokens:.2f} nats")


def play(model: str, rate: str, rounds: int, folder: Path) -> str:
    """One run; its last figures as a row."""
    config: dict[str, Any] = {
        "run": {"dir": str(folder), "rounds": rounds},
        "model": {"path": model},
        "prompts": {"source": "embedded:openings/train", "per_round": 128, "max_tokens": 64},
        "sampling": {"max_tokens": 48},
        "judge": {"type": "reward_model", "path": "embedded:reward"},
        "evaluation": {
            "sets": {"heldout": {"source": "embedded:openings/heldout", "count": 96}},
            "judges": {"gold": {"type": "python", "target": "embedded:gold"}},
        },
    }
    result = run(load_config(config, [] if rate == "auto" else [f"learner.lr={rate}"]))
    metrics = [json.loads(line) for line in (result.run_dir / "metrics.jsonl").read_text().splitlines()]
    lr = next(record["lr"] for record in metrics if record["kind"] == "step")
    found = result.rounds[-1].evaluation["heldout"]
    gains = ["{:+.2f} [{:+.2f}, {:+.2f}]".format(*(found.judges[name].gain or ())) for name in ("reward", "gold")]
    warned = sum("learner.lr" in warning for each in result.rounds for warning in each.warnings)
    shown = [Path(model).name, f"{rate} ({lr:g})" if rate == "auto" else rate, *gains, f"{found.kl_initial:.2f}"]
    return f"| {' | '.join([*shown, f'{found.sampling.distinct_2:.3f}', str(warned)])} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("train")
    one.add_argument("reviews", type=Path)
    one.add_argument("out", type=Path)
    one.add_argument("--shape", required=True)
    one.add_argument("--minutes", type=float, default=6.0)
    other = commands.add_parser("runs")
    other.add_argument("models", nargs="+")
    other.add_argument("--rates", nargs="+", default=["auto"])
    other.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    if args.command == "train":
        train(args.reviews, args.out, [int(part) for part in args.shape.split(",")], args.minutes)
        return
    print("| model | learner.lr | reward gain | gold gain | KL to initial | distinct-2 | warnings |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for model in args.models:
        for rate in args.rates:
            with tempfile.TemporaryDirectory() as folder:
                print(play(model, rate, args.rounds, Path(folder)), flush=True)


if __name__ == "__main__":
    main()
