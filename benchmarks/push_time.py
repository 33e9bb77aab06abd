"""The seconds of a merged push beside those that vLLM needs to load the same weights from its files.

    python benchmarks/push_time.py [--shape qwen2-0.5b|small] [--repeats 7]

One engine in bfloat16 as a generator starts it, random weights, a LoRA of rank 8 on every linear layer. Both go through
vLLM's layer-wise reload: once with our merged tensors and the check of digests, once with vLLM's own reading of the
files, which lie in the page cache and hold the embedding and the head besides, which a push leaves as they are. They
take turns; medians. Prints a table and asserts nothing.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from one_table import note
from online_vs_trl import SHAPES
from random_models import learner_on, make_tokenizer, random_pairs, save_llama


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="qwen2-0.5b")
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    sizes = SHAPES[args.shape]["model"]
    with tempfile.TemporaryDirectory() as folder:
        save_llama(folder, sizes, dtype="bfloat16")
        make_tokenizer(sizes["vocab_size"]).save_pretrained(folder)
        adapter = trained_adapter(folder, sizes["vocab_size"])
        generator = start_engine(folder)
        runner = generator._llm.llm_engine.model_executor.driver_worker.worker.model_runner
        ways: dict[str, Callable[[], Any]] = {
            "merged push": lambda: generator.push(adapter, 1),
            "vLLM loads the weights": runner.reload_weights,
        }
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(args.repeats + 1):
            for name, call in ways.items():
                start = time.perf_counter()
                call()
                seconds[name].append(time.perf_counter() - start)
        generator.close()
    medians = {name: statistics.median(taken[1:]) for name, taken in seconds.items()}
    print(
        f"{args.shape}: {adapter.weights.__len__() / 2**20:.0f} MiB of adapter\n\n| | s, median | each |\n|---|---|---|"
    )
    for name, taken in seconds.items():
        print(f"| {name} | {medians[name]:.3f} | {', '.join(f'{value:.3f}' for value in taken[1:])} |")
    push, load = medians.values()
    print(f"\npush over load: {push / load:.2f}")
    note(f"push, {args.shape}", push, unit="s", beside="vLLM loads the weights", other=load, aim="at most 1.3")


def trained_adapter(folder: str, vocab_size: int) -> Any:
    """After one step, so that no matrix is zero."""
    from online_dpo.config.learner import LearnerSection

    learner = learner_on(folder, LearnerSection(lora={"r": 8}, lr=1e-4, batch_pairs=2))
    pairs = learner.reference_logps(random_pairs(2, vocab_size=vocab_size), [None])
    learner.begin_round(0, pairs)
    learner.step(0)
    return learner.policy(1)


def start_engine(folder: str, *, dtype: str = "bfloat16", max_model_len: int = 512, max_num_seqs: int = 8) -> Any:
    from actors.generator import EngineSpec, Generator

    os.environ.update(VLLM_CPU_KVCACHE_SPACE="1", VLLM_LOGGING_LEVEL="ERROR")
    return Generator(
        EngineSpec(
            model_folder=str(Path(folder)), trust_remote_code=False, dtype=dtype, max_model_len=max_model_len,
            max_num_seqs=max_num_seqs, weight_push="merge", lora_rank=8, lora_targets=(), tensor_parallel=1,
            eos_token_ids=(2,), gpu_memory_utilization=0.5, block_size=None, enforce_eager=True, seed=0,
        )
    )  # fmt: skip


if __name__ == "__main__":
    main()
