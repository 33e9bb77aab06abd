"""Does an actor's memory grow with the number of different lengths that it has seen? On CPU, without Ray.

    python benchmarks/memory_growth.py [--parts learner generator judge] [--dtypes bfloat16 float32] [--rounds 160]

Each part is a process of its own with the environment variables that its actor has in a run, and a model of 3.2 M
parameters. A round is a step of 16 pairs for the learner, 16 samples of up to 60 tokens for the generator, and 32 texts
for a reward model, each of a random length of up to 600 tokens. Prints the memory in use (resident set) after the first
round and after each quarter of them; asserts nothing.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from push_time import start_engine
from random_models import SMALL, learner_on, make_tokenizer, random_pairs, save_llama

from online_dpo.config.loading import load_config
from online_dpo.config.threads import resolve_threads

VOCABULARY, MAX_TOKENS = SMALL["vocab_size"], 600
PARTS = ("learner", "generator", "judge")
CONFIG = {
    "model": {"path": "none"},
    "prompts": {"source": "none.jsonl"},
    "judge": {"type": "reward_model", "path": "none"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--dtypes", nargs="+", choices=("bfloat16", "float32"), default=("bfloat16", "float32"))
    parser.add_argument("--rounds", type=int, default=160, help="a multiple of 4")
    parser.add_argument("--play", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.play:
        watch(*args.play, args.rounds)
        return
    print(f"| part | precision | GiB after 1 round | {' | '.join(map(str, quarters(args.rounds)))} |")
    print("|---|---|---|---|---|---|---|")
    for part in args.parts:
        for dtype in args.dtypes:
            command = [sys.executable, __file__, "--rounds", str(args.rounds), "--play", part, dtype]
            done = subprocess.run(command, env={**os.environ, **variables(part)}, check=True, stdout=-1, text=True)
            print(f"| {part} | {dtype} | {done.stdout.splitlines()[-1]} |", flush=True)


def quarters(rounds: int) -> list[int]:
    return [rounds * i // 4 for i in range(1, 5)]


def variables(part: str) -> dict[str, str]:
    """Environment variables of the part's actor, on a machine without a GPU."""
    from actors.resources import generator_options, judge_options, learner_options

    config = resolve_threads(load_config(CONFIG))
    options = {
        "learner": lambda: learner_options(config, 0),
        "generator": lambda: generator_options(config, 0),
        "judge": lambda: judge_options(config, config.judge, 0),
    }
    return dict(options[part]()["runtime_env"]["env_vars"])


def watch(part: str, dtype: str, rounds: int) -> None:
    process, found = psutil.Process(), []
    with tempfile.TemporaryDirectory() as folder:
        play = {"learner": learner, "generator": generator, "judge": judge}[part](folder, dtype)
        for number in range(1, rounds + 1):
            play(random.Random(number))
            if number in (1, *quarters(rounds)):
                found.append(f"{process.memory_info().rss / 2**30:.2f}")
        print(" | ".join(found), flush=True)
    os._exit(0)  # an engine's threads may outlive it


def learner(folder: str, dtype: str) -> Callable[[random.Random], Any]:
    from online_dpo.config.learner import LearnerSection

    save_llama(folder, SMALL)
    autocast = "bfloat16" if dtype == "bfloat16" else "off"
    trained = learner_on(folder, LearnerSection(lora={"r": 8}, lr=1e-4, batch_pairs=16, autocast=autocast))
    rounds = iter(range(1 << 30))

    def play(rng: random.Random) -> None:
        pairs = [
            random_pairs(1, vocab_size=VOCABULARY, length=rng.randint(2, MAX_TOKENS), seed=rng.randrange(1 << 30))[0]
            for _ in range(16)
        ]
        trained.begin_round(next(rounds), trained.reference_logps(pairs, [None]))
        trained.step(0)

    return play


def generator(folder: str, dtype: str) -> Callable[[random.Random], Any]:
    from vllm import SamplingParams

    save_llama(folder, SMALL, dtype=dtype)
    make_tokenizer(VOCABULARY).save_pretrained(folder)
    engine = start_engine(folder, dtype=dtype, max_model_len=1024, max_num_seqs=16)

    def play(rng: random.Random) -> None:
        plans = [SamplingParams(seed=i, max_tokens=rng.randint(2, 60), logprobs=0) for i in range(16)]
        engine._reset_prefix_cache()
        engine._generate([tokens(rng) for _ in plans], plans)

    return play


def judge(folder: str, dtype: str) -> Callable[[random.Random], Any]:
    import torch
    from transformers import LlamaConfig, LlamaForSequenceClassification

    from judges.reward.classifier import Classifier

    config = LlamaConfig(**SMALL, num_labels=1, pad_token_id=0)
    LlamaForSequenceClassification(config).to(getattr(torch, dtype)).save_pretrained(folder)
    model = Classifier(
        Path(folder), config, dtype=dtype, batch_tokens=4096, trust_remote_code=False, on_gpu=False, label="the judge"
    )
    return lambda rng: model.logits([tokens(rng) for _ in range(32)])


def tokens(rng: random.Random) -> list[int]:
    return rng.choices(range(5, VOCABULARY), k=rng.randint(2, MAX_TOKENS))


if __name__ == "__main__":
    main()
