"""The learner alone beside TRL's `DPOTrainer`, on the same pairs: a step with its reference pass, and memory.

    python benchmarks/learner.py [--model qwen|tiny] [--pairs 2] [--prompt-tokens 256] [--new-tokens 128] [--steps 4]

Both sides live in processes of their own and take their steps in turn, so that a busy moment of the machine hits both;
medians of all steps but the first. `--model qwen` is a random model in the shape of Qwen2-0.5B (494 M parameters,
vocabulary 151 936), `tiny` the small Llama of `make_tiny_model` (3.2 M). Memory is each process's peak resident set.
TRL's `OnlineDPOTrainer` is asked for its peak too (`--online`): it samples in its own process, so one step is enough.
Prints a table with the floor of each side's own work at the matrix-product rate measured just before; asserts nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from one_table import note
from random_models import QWEN2_HALF_BILLION, SMALL
from turns import read_reply, reply, start_worker, tell, wait_for_step

EOS = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=["qwen", "tiny"], default="qwen")
    parser.add_argument("--pairs", type=int, default=2)
    parser.add_argument("--prompt-tokens", type=int, default=256)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--sides", default="ours/float32,trl/float32;ours/bfloat16,trl/bfloat16")
    parser.add_argument("--online", action="store_true", help="TRL's OnlineDPOTrainer as well, for its memory")
    parser.add_argument("--ours", nargs="*", default=[], help="fields of the learner section, such as layout=separate")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(args)
        return
    with tempfile.TemporaryDirectory() as folder:
        args.folder = Path(folder)
        subprocess.run([sys.executable, __file__, *flags(args), "--worker", "make"], check=True)
        rates = json.loads(run_worker(args, "rates"))
        rows = [row for sides in args.sides.split(";") for row in compare(args, sides.split(","))]
        if args.online:
            rows.append(json.loads(run_worker(args, "trl-online")))
        report(args, rows, rates)


def flags(args: argparse.Namespace) -> list[str]:
    names = ("model", "pairs", "prompt_tokens", "new_tokens", "steps", "threads", "folder")
    values = [f"--{name.replace('_', '-')}={getattr(args, name)}" for name in names]
    return values + (["--ours", *args.ours] if args.ours else [])


def run_worker(args: argparse.Namespace, worker: str) -> str:
    command = [sys.executable, __file__, *flags(args), "--worker", worker]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]


def compare(args: argparse.Namespace, sides: list[str]) -> list[dict[str, Any]]:
    """Steps of several processes in turn."""
    # One starts after the other.
    command = [sys.executable, __file__, *flags(args), "--worker"]
    workers = {side: start_worker([*command, side], side, args.folder) for side in sides}
    seconds: dict[str, list[list[float]]] = {side: [] for side in sides}
    for _ in range(args.steps):
        for side, worker in workers.items():
            tell(worker, "step")
            seconds[side].append(read_reply(worker, side, args.folder))
            print(f"{side}: {seconds[side][-1][0]:.2f} s, {seconds[side][-1][1]:.2f} s of CPU", file=sys.stderr)
    rows = []
    for side, worker in workers.items():
        tell(worker, "end")
        row = read_reply(worker, side, args.folder)
        worker.wait()
        wall, cpu = (statistics.median(step[i] for step in seconds[side][1:]) for i in (0, 1))
        rows.append({"side": side, "seconds": wall, "cpu": cpu, "first": seconds[side][0][0], **row})
    return rows


def report(args: argparse.Namespace, rows: list[dict[str, Any]], rates: dict[str, float]) -> None:
    print(
        f"{args.pairs} pairs, prompt {args.prompt_tokens}, completion {args.new_tokens}, {args.threads} threads; "
        f"matrix products: {rates['float32'] / 1e9:.0f} GFLOP/s in float32, {rates['bfloat16'] / 1e9:.0f} in bfloat16\n"
    )
    print("| side | s per step | CPU s | first step | floor | over its floor | peak GiB |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        peak = row["peak_bytes"] / 2**30
        if "seconds" not in row:
            print(f"| {row['side']} | - | - | - | - | - | {peak:.2f} |")
            continue
        floor = row["flops"] / rates["float32" if row["side"].endswith("float32") else "bfloat16"]
        times = [f"{row[name]:.2f}" for name in ("seconds", "cpu", "first")]
        print(f"| {row['side']} | {' | '.join(times)} | {floor:.2f} | {row['seconds'] / floor:.2f} | {peak:.2f} |")
    by_side = {row["side"]: row for row in rows}
    for ours, theirs in (("ours/float32", "trl/float32"), ("ours/bfloat16", "trl/bfloat16")):
        if ours in by_side and theirs in by_side:
            left, right = by_side[ours], by_side[theirs]
            print(
                f"\n{ours} over {theirs}: time {left['seconds'] / right['seconds']:.3f}, "
                f"CPU time {left['cpu'] / right['cpu']:.3f}, memory {left['peak_bytes'] / right['peak_bytes']:.3f}"
            )
            beside = {"beside": "TRL's DPOTrainer", "other": right["seconds"], "aim": "at most 0.65"}
            note(f"learner's step, {args.model}, {ours.split('/')[1]}", left["seconds"], unit="s", **beside)
    if "trl-online" in by_side:
        for side in by_side:
            if side.startswith("ours"):
                ratio = by_side[side]["peak_bytes"] / by_side["trl-online"]["peak_bytes"]
                print(f"\n{side} over TRL's OnlineDPOTrainer: memory {ratio:.3f}")


# Workers


def work(args: argparse.Namespace) -> None:
    os.environ.update(CUDA_VISIBLE_DEVICES="", HF_HUB_OFFLINE="1", TRL_EXPERIMENTAL_SILENCE="1")
    import torch

    torch.set_num_threads(args.threads)
    if args.worker == "make":
        make_model(args)
    elif args.worker == "rates":
        print(json.dumps(matrix_rates()))
    elif args.worker == "trl-online":
        trl_online(args)
    else:
        system, precision = args.worker.split("/")
        {"ours": ours, "trl": trl}[system](args, precision)


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def make_model(args: argparse.Namespace) -> None:
    """A random model, and a tokenizer with one word per id, so that ids survive TRL's way through text."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": EOS, "tie_word_embeddings": True}
    model: Any
    if args.model == "qwen":
        model = Qwen2ForCausalLM(Qwen2Config(**QWEN2_HALF_BILLION, **special))
    else:
        model = LlamaForCausalLM(LlamaConfig(**SMALL, **special))
    model.save_pretrained(args.folder)
    words = {"<pad>": 0, "<bos>": 1, "<eos>": EOS, **{f"w{i}": i for i in range(3, model.config.vocab_size)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>"
    ).save_pretrained(args.folder)


def make_texts(args: argparse.Namespace, vocab: int) -> list[tuple[list[int], list[int], list[int]]]:
    """Ids of prompt, chosen and rejected; completions end in EOS, which TRL would append."""
    rng = random.Random(0)

    def ids(count: int) -> list[int]:
        return [rng.randrange(3, vocab) for _ in range(count)]

    return [
        (ids(args.prompt_tokens), *([*ids(args.new_tokens - 1), EOS] for _ in range(2)))  # type: ignore[misc]
        for _ in range(args.pairs)
    ]


def matrix_rates() -> dict[str, float]:
    """FLOP/s of one large product, the best of several."""
    import torch

    rates = {}
    for dtype in (torch.float32, torch.bfloat16):
        a, b = torch.randn(2048, 1024).to(dtype), torch.randn(4864, 1024).to(dtype)
        seconds = min(timed(lambda a=a, b=b: torch.nn.functional.linear(a, b)) for _ in range(8))
        rates[str(dtype).removeprefix("torch.")] = 2 * 2048 * 1024 * 4864 / seconds
    return rates


def both_clocks(work: Callable[[], Any]) -> tuple[float, float]:
    """Seconds of wall and of CPU: where others use the machine too, the second tells more."""
    cpu = time.process_time()
    return timed(work), time.process_time() - cpu


def timed(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def step_flops(config: Any, args: argparse.Namespace, *, prompts: int) -> float:
    """Matrix products of one step that nobody can avoid: reference pass, forward, backward without frozen weights.

    The decoder's linear layers over every token, attention's two products over what each token sees, and the head over
    completion tokens; `prompts` is how often a pair's prompt is computed.
    """
    hidden, heads, layers = config.hidden_size, config.num_attention_heads, config.num_hidden_layers
    head_dim = hidden // heads
    attention = 2 * hidden * hidden + 2 * hidden * config.num_key_value_heads * head_dim
    weights = layers * (attention + 3 * hidden * config.intermediate_size)
    p, c = args.prompt_tokens, args.new_tokens
    tokens = prompts * p + 2 * c
    seen = prompts * p * p / 2 + 2 * (c * p + c * c / 2)
    forward = 2 * weights * tokens + 4 * hidden * layers * seen
    head = 2 * hidden * config.vocab_size * 2 * c
    return args.pairs * (3 * forward + 3 * head)


def ours(args: argparse.Namespace, precision: str) -> None:
    from online_dpo.config.learner import LearnerSection, LoraSection
    from online_dpo.config.objective.pairwise import SigmoidObjective
    from online_dpo.learner.learner import Learner, LearnerSpec
    from online_dpo.types import Completion, Pair, Prompt

    fields: dict[str, Any] = dict(field.split("=") for field in args.ours)
    section = LearnerSection(
        lr=1e-5, batch_pairs=args.pairs, autocast="off" if precision == "float32" else "bfloat16", **fields
    )
    learner = Learner(
        LearnerSpec(
            model_folder=str(args.folder), model_name="random", dtype="float32", trust_remote_code=False,
            lora=LoraSection(r=8, alpha=16), adapter=None, learner=section,
            objective=SigmoidObjective(type="sigmoid", beta=0.1), seed=0, rounds=10**6, threads=args.threads,
        )
    )  # fmt: skip
    config: Any = learner.model.get_base_model().config

    def answer(index: int, sample: int, ids: list[int]) -> Completion:
        return Completion(
            prompt_id=str(index), sample_index=sample, token_ids=tuple(ids), text="", finish_reason="stop",
            sampler_logps=(0.0,) * len(ids), policy_version=0, seed=0,
        )  # fmt: skip

    pairs = [
        Pair(
            prompt=Prompt(prompt_id=str(i), token_ids=tuple(prompt), text=""),
            chosen=answer(i, 0, chosen), rejected=answer(i, 1, rejected), margin=1.0, probability=0.7,
        )
        for i, (prompt, chosen, rejected) in enumerate(make_texts(args, config.vocab_size))
    ]  # fmt: skip

    def step(index: int) -> None:
        learner.begin_round(index, learner.reference_logps(pairs, [None]))
        learner.step(0)

    index = 0
    reply("ready")
    while wait_for_step():
        reply(both_clocks(lambda: step(index)))  # noqa: B023
        index += 1
    reply({"peak_bytes": peak_bytes(), "flops": step_flops(config, args, prompts=1)})


def trl(args: argparse.Namespace, precision: str) -> None:
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, TrainerCallback
    from trl import DPOConfig, DPOTrainer

    model = AutoModelForCausalLM.from_pretrained(args.folder)
    options = {} if precision == "defaults" else {"bf16": precision == "bfloat16", "gradient_checkpointing": False}

    def text(ids: list[int]) -> str:
        return " ".join("<eos>" if token == EOS else f"w{token}" for token in ids)

    rows = [
        {"prompt": text(prompt), "chosen": " " + text(chosen), "rejected": " " + text(rejected)}
        for prompt, chosen, rejected in make_texts(args, model.config.vocab_size)
    ]

    class InTurn(TrainerCallback):
        start = cpu = 0.0

        def on_step_begin(self, _args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 0:
                reply("ready")
            if not wait_for_step():
                reply({"peak_bytes": peak_bytes(), "flops": step_flops(model.config, args, prompts=2)})
                os._exit(0)
            self.start, self.cpu = time.perf_counter(), time.process_time()

        def on_step_end(self, _args: Any, state: Any, control: Any, **_: Any) -> None:
            reply((time.perf_counter() - self.start, time.process_time() - self.cpu))

    trainer = DPOTrainer(
        model=model,
        args=DPOConfig(
            output_dir=tempfile.mkdtemp(), use_cpu=True, per_device_train_batch_size=args.pairs, max_steps=10**6,
            learning_rate=1e-5, max_length=None, beta=0.1, report_to="none", save_strategy="no",
            logging_steps=10**6, disable_tqdm=True, **options,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=PreTrainedTokenizerFast.from_pretrained(args.folder),
        peft_config=LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"),
        callbacks=[InTurn()],
    )  # fmt: skip
    lengths = {(len(r["prompt_ids"]), len(r["chosen_ids"]), len(r["rejected_ids"])) for r in trainer.train_dataset}
    assert lengths == {(args.prompt_tokens, args.new_tokens, args.new_tokens)}, lengths
    trainer.train()


def trl_online(args: argparse.Namespace) -> None:
    """One step of TRL's online trainer with its fastest memory-relevant settings: cached generation, float32."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
    from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer

    model = AutoModelForCausalLM.from_pretrained(args.folder)
    prompts = [" ".join(f"w{token}" for token in p) for p, _, _ in make_texts(args, model.config.vocab_size)]
    trainer = OnlineDPOTrainer(
        model=model,
        args=OnlineDPOConfig(
            output_dir=tempfile.mkdtemp(), use_cpu=True, bf16=False, gradient_checkpointing=False,
            per_device_train_batch_size=args.pairs, max_steps=1, learning_rate=1e-5, max_new_tokens=args.new_tokens,
            max_length=args.prompt_tokens + args.new_tokens + 8, temperature=1.0, beta=0.1, report_to="none",
            save_strategy="no", logging_steps=1000, disable_tqdm=True,
            generation_kwargs={"min_new_tokens": args.new_tokens, "use_cache": True},
        ),
        train_dataset=Dataset.from_dict({"prompt": prompts}),
        processing_class=PreTrainedTokenizerFast.from_pretrained(args.folder),
        reward_funcs=lambda prompts, completions, **_: [float(len(c)) for c in completions],
        peft_config=LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"),
    )  # fmt: skip
    trainer.train()
    print(json.dumps({"side": "trl-online", "peak_bytes": peak_bytes()}))


if __name__ == "__main__":
    main()
