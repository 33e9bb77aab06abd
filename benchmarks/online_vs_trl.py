"""A whole online step beside TRL's `OnlineDPOTrainer`: sample two answers per prompt, judge, one LoRA DPO update, push.

    python benchmarks/online_vs_trl.py [--shape small|qwen2-0.5b] [--prompt-tokens 16] [--new-tokens 64] [--pairs 64]
                                       [--steps 6] [--peers vllm-bf16,vllm,defaults] [--set key=value ...]

Ours is a round of `online_dpo.run` as any user gets it (Ray, vLLM engine, checks, commits), from its first event to
its commit; fields of its config may be set with `--set`. TRL runs colocated vLLM (whose weights it always rounds to
bfloat16 on CPU) with and without bf16 autocast, no checkpointing, the whole batch at once, and its defaults. The model
has random weights: a Llama of 3.2 M parameters, whose systems are all up at the same time and take their steps in turn;
or the shape of Qwen2-0.5B, whose systems are each alone in the machine's memory, in turns that begin anew. Medians of
all steps but the first two of each turn. A pair counts as a pair of full length: answers that ended early count by
their tokens. Memory is the sum of the peak resident sets of a system's processes. Prints a table; asserts nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from one_table import note
from random_models import QWEN2_HALF_BILLION, SMALL
from turns import read_reply, reply, start_worker, tell, wait_for_step

PEERS = ("vllm-bf16", "vllm", "transformers-bf16", "transformers", "defaults")
WARM_UP = 2  # steps whose time does not count

OURS = {
    "model.dtype": "float32",
    "generator.dtype": "bfloat16",
    "sampling.num_samples": 2,
    "generator.rescored": 4,
    "learner.autocast": "bfloat16",
    "learner.micro_batch_tokens": 4096,
    "learner.lr": 1e-5,
    "learner.lora.r": 8,
    "learner.lora.alpha": 16,
    "learner.checkpoint_steps": 0,
    "objective.beta": 0.1,
    "reference.type": "fixed",
}
"""The config at its best for this work, on CPU."""

SHAPES: dict[str, dict[str, Any]] = {
    "small": {
        "work": {"prompt_tokens": 16, "new_tokens": 64, "pairs": 64, "steps": 6},
        "model": SMALL,
        # An engine's Python per token is on one core: two engines of half the threads use both.
        "ours": {"generator.replicas": 2, "generator.enforce_eager": False},
        "together": True,
        "aims": {16: 1.1, 512: 3},
    },
    "qwen2-0.5b": {
        "work": {"prompt_tokens": 256, "new_tokens": 128, "pairs": 4, "steps": 5},
        "model": QWEN2_HALF_BILLION,
        "ours": {"generator.replicas": 1, "generator.rescored": 2},
        "together": False,
        "aims": {256: 2},
    },
}
"""Work, model, what of our config is best for them, and whether all systems fit into memory together."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="small")
    for name in SHAPES["small"]["work"]:
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, help="of the shape, unless given")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--peers", default="vllm-bf16", help=f"of {', '.join(PEERS)}")
    parser.add_argument("--set", nargs="*", default=[], help="fields of our config")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    for name, value in SHAPES[args.shape]["work"].items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if args.worker == "make":
        make_inputs(args)
    elif args.worker == "ours":
        ours(args)
    elif args.worker:
        trl(args)
    else:
        with tempfile.TemporaryDirectory() as folder:
            args.folder = Path(folder)
            subprocess.run(command(args, "make"), check=True)
            peers = [peer for peer in args.peers.split(",") if peer]
            report(args, measure(args, ["ours", *peers]))


def command(args: argparse.Namespace, worker: str) -> list[str]:
    names = ("shape", "prompt_tokens", "new_tokens", "pairs", "steps", "threads", "folder")
    flags = [f"--{name.replace('_', '-')}={getattr(args, name)}" for name in names]
    chosen = ["--set", *args.set] if args.set else []
    return [sys.executable, __file__, *flags, "--worker", worker, *chosen]


def measure(args: argparse.Namespace, sides: list[str]) -> dict[str, list[dict[str, Any]]]:
    """The steps of each side that count."""
    # Large systems do not fit into memory together: each begins anew when its turn comes again.
    groups = [sides] if SHAPES[args.shape]["together"] else [[side] for side in sides] * 2
    steps: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for group in groups:
        shutil.rmtree(args.folder / "ours", ignore_errors=True)
        for side, taken in take_turns(args, group).items():
            print(f"{side}: {[round(step['seconds'], 1) for step in taken]} s", file=sys.stderr)
            steps[side] += taken[WARM_UP:] or taken
    return steps


def take_turns(args: argparse.Namespace, sides: list[str]) -> dict[str, list[dict[str, Any]]]:
    workers: dict[str, Any] = {}
    try:
        return _take_turns(args, sides, workers)
    finally:
        for worker in workers.values():
            worker.terminate()


def _take_turns(args: argparse.Namespace, sides: list[str], workers: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    for side in sides:
        workers[side] = start_worker(command(args, side), side, args.folder)  # one starts after the other
    steps: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for _ in range(args.steps):
        for side, worker in workers.items():
            tell(worker, "step")
            steps[side].append(read_reply(worker, side, args.folder))
    for worker in workers.values():
        worker.communicate("end\n")
    return steps


def report(args: argparse.Namespace, steps: dict[str, list[dict[str, Any]]]) -> None:
    print(f"{args.pairs} pairs, prompt {args.prompt_tokens}, completion {args.new_tokens}, {args.threads} threads\n")
    print("| system | pairs/s, median | best | s per step | peak GiB |\n|---|---|---|---|---|")
    rates = {}
    for side, taken in steps.items():
        per_s = [step["num_tokens"] / (2 * args.new_tokens) / step["seconds"] for step in taken]
        rates[side] = statistics.median(per_s)
        seconds, peak = statistics.median(step["seconds"] for step in taken), taken[-1]["peak_bytes"] / 2**30
        print(f"| {side} | {rates[side]:.2f} | {max(per_s):.2f} | {seconds:.2f} | {peak:.2f} |")
    for side, rate in rates.items():
        if side != "ours":
            print(f"\nours over TRL {side}: {rates['ours'] / rate:.2f}")
            what = f"online step, {args.shape}, prompt {args.prompt_tokens}"
            aim = f"at least {SHAPES[args.shape]['aims'].get(args.prompt_tokens, 1)}"
            note(what, rates["ours"], unit="pairs/s", beside=f"TRL, {side}", other=rate, aim=aim)
    for key, title in (("stages", "stage of our round"), ("calls", "call of an actor")):
        taken = [step[key] for step in steps["ours"]]
        print(f"\n| {title} | s, median |\n|---|---|")
        for name in dict.fromkeys(name for part in taken for name in part):
            print(f"| {name} | {statistics.median(part.get(name, 0.0) for part in taken):.3f} |")


# Workers


def peak_bytes() -> int:
    """Peak resident sets of this process and of all that it started, added up."""
    import psutil

    total = 0
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
        except OSError:
            continue  # it has ended
        total += sum(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))
    return total


def make_inputs(args: argparse.Namespace) -> None:
    """A random model, a byte-level tokenizer, prompts whose own tokenisation has the asked-for length, a judge."""
    import torch
    from random_models import make_tokenizer, save_llama

    sizes = SHAPES[args.shape]["model"]
    tokenizer = make_tokenizer(sizes["vocab_size"])
    tokenizer.save_pretrained(args.folder / "model")
    save_llama(args.folder / "model", sizes, dtype="float32" if args.shape == "small" else "bfloat16")  # as published
    generator = torch.Generator().manual_seed(0)
    prompts: list[str] = []
    while len(prompts) < args.pairs:
        ids = torch.randint(3, len(tokenizer), (args.prompt_tokens * 2,), generator=generator).tolist()
        ids = tokenizer(tokenizer.decode(ids), add_special_tokens=False).input_ids[: args.prompt_tokens]
        text = tokenizer.decode(ids)
        if len(tokenizer(text, add_special_tokens=False).input_ids) == args.prompt_tokens and text not in prompts:
            prompts.append(text)
    (args.folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in prompts))
    # TRL calls a tie a win of the first answer; here a tie would be no pair, so a judge that knows none.
    (args.folder / "judge.py").write_text(
        "import zlib\n\n\ndef score(prompt, completion):\n"
        "    return completion.count('e') + zlib.crc32(completion.encode()) / 2**32\n"
    )


def our_config(args: argparse.Namespace) -> dict[str, Any]:
    """The config of our run, nested as YAML would be."""
    shape = SHAPES[args.shape]["ours"]
    replicas = shape["generator.replicas"]
    settings = {
        **OURS,
        **shape,
        "run.dir": args.folder, "run.name": "ours", "run.rounds": args.steps,
        "model.path": args.folder / "model",
        "prompts.source": args.folder / "prompts.jsonl", "prompts.per_round": args.pairs,
        "prompts.max_tokens": args.prompt_tokens,
        "sampling.max_tokens": args.new_tokens,
        "generator.shard_prompts": -(-args.pairs // replicas), "generator.threads": max(args.threads // replicas, 1),
        "judge.type": "python", "judge.target": f"{args.folder / 'judge.py'}:score",
        "learner.batch_pairs": args.pairs, "learner.threads": args.threads,
    }  # fmt: skip
    mapping: dict[str, Any] = {}
    for key, value in settings.items():
        section = mapping
        *path, last = key.split(".")
        for name in path:
            section = section.setdefault(name, {})
        section[last] = str(value) if isinstance(value, Path) else value
    return mapping


def ours(args: argparse.Namespace) -> None:
    """Rounds of a run; between two of them the next turn is waited for."""
    from call_times import CallTimes

    from online_dpo import load_config, run
    from online_dpo.loop.stages import Event

    calls = CallTimes()

    class InTurn:
        """Listens to the run; the run waits while a listener does."""

        start = 0.0
        num_tokens = 0
        pairs = 0

        def note(self, line: str) -> None:
            pass

        def hear(self, event: Event) -> None:
            if event.kind == "run_started":
                reply()
                self.take_turn()
            elif event.kind == "shard_sampled":
                self.num_tokens += event.data["num_tokens"]
            elif event.kind == "paired":
                self.pairs = event.data["num_pairs"]
            elif event.kind == "round_done":
                seconds = time.perf_counter() - self.start
                assert self.pairs == args.pairs, f"{self.pairs} pairs"
                stages = json.loads((args.folder / "ours" / "metrics.jsonl").read_text().splitlines()[-1])["seconds"]
                parts = {"stages": stages, "calls": calls.take()}
                reply({"seconds": seconds, "num_tokens": self.num_tokens, "peak_bytes": peak_bytes(), **parts})
                self.take_turn()

        def take_turn(self) -> None:
            wait_for_step()
            calls.take()
            self.num_tokens, self.start = 0, time.perf_counter()

    run(load_config(our_config(args), args.set), listeners=[InTurn()])


def trl_turns(args: argparse.Namespace) -> Any:
    """A callback with which TRL's trainer waits for its turn before each step."""
    from transformers import TrainerCallback

    class InTurn(TrainerCallback):
        start = 0.0

        def on_step_begin(self, _args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 0:
                reply()
            if not wait_for_step():
                os._exit(0)
            self.start = time.perf_counter()

        def on_step_end(self, _args: Any, state: Any, control: Any, **_: Any) -> None:
            num_tokens = 2 * args.pairs * args.new_tokens
            seconds = time.perf_counter() - self.start
            reply({"seconds": seconds, "num_tokens": num_tokens, "peak_bytes": peak_bytes()})

    return InTurn()


def trl(args: argparse.Namespace) -> None:
    """TRL's trainer on the same prompts, as fast as its options make it, or with its defaults."""
    os.environ.update(
        CUDA_VISIBLE_DEVICES="", HF_HUB_OFFLINE="1", TRL_EXPERIMENTAL_SILENCE="1", VLLM_CPU_KVCACHE_SPACE="1",
        VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_LOGGING_LEVEL="ERROR",
    )  # fmt: skip
    import torch
    import trl.experimental.online_dpo.online_dpo_trainer as online
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer

    torch.set_num_threads(args.threads)
    with_vllm, defaults = args.worker.startswith("vllm"), args.worker == "defaults"
    make_engine: Any = online.LLM if with_vllm else None
    if with_vllm:
        # On CPU the engine must be eager here; it may decode all answers at once.
        online.LLM = lambda **options: make_engine(**options | {"enforce_eager": True, "max_num_seqs": 2 * args.pairs})

    class Trainer(OnlineDPOTrainer):  # type: ignore[misc]
        def _move_model_to_vllm_inner(self) -> None:
            """TRL loads raw weights, which the engine's CPU build cannot; they go through its layer-wise reload."""
            self.model.merge_adapter()
            merged = [
                (name.removeprefix("base_model.model.").replace(".base_layer", ""), p.data.clone())
                for name, p in self.model.named_parameters()
                if self.model.prefix not in name
            ]
            self.model.unmerge_adapter()
            worker = self.llm.llm_engine.model_executor.driver_worker
            worker.model_runner.reload_weights(weights_iterator=iter(merged))

    generation: dict[str, Any] = {"ignore_eos": True} if with_vllm else {"min_new_tokens": args.new_tokens}
    if not with_vllm and not defaults:
        generation["use_cache"] = True
    fast = {} if defaults else {"bf16": args.worker.endswith("bf16"), "gradient_checkpointing": False}
    prompts = [json.loads(line)["prompt"] for line in (args.folder / "prompts.jsonl").read_text().splitlines()]
    Trainer(
        model=AutoModelForCausalLM.from_pretrained(args.folder / "model", dtype=torch.float32),
        args=OnlineDPOConfig(
            output_dir=tempfile.mkdtemp(), use_cpu=True, per_device_train_batch_size=args.pairs, max_steps=10**6,
            learning_rate=1e-5, max_new_tokens=args.new_tokens, max_length=args.prompt_tokens + args.new_tokens + 8,
            temperature=1.0, beta=0.1, report_to="none", save_strategy="no", logging_steps=10**6, disable_tqdm=True,
            use_vllm=with_vllm, vllm_mode="colocate", generation_kwargs=generation, **fast,
        ),
        train_dataset=Dataset.from_dict({"prompt": prompts}),
        processing_class=AutoTokenizer.from_pretrained(args.folder / "model"),
        reward_funcs=lambda prompts, completions, **_: [float(c.count("e")) for c in completions],
        peft_config=LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"),
        callbacks=[trl_turns(args)],
    ).train()  # fmt: skip


if __name__ == "__main__":
    main()
