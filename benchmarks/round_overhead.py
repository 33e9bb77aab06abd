"""A whole round over the sum of its bare floors, measured in the same run on the same data.

    python benchmarks/round_overhead.py [--prompts 900] [--repeats 3]

Plays two rounds of the embedded task (the first warms the engine up), then takes the second one's own prompts, texts
and pairs out of the run directory and does the bare work on them, each kind in a process of its own: one `LLM.generate`
for all samples, the reward model over all texts in one call, a plain transformers + PEFT loop over the pairs, our own
learner without Ray on the same pairs (the faster of the two is the floor), and the same for the evaluation's samples
and their scoring. Repeats that on the run's next rounds, so that a noisy machine disturbs rounds and floors alike, and
prints medians; asserts nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from one_table import note

WARM_UP = 8  # rows done before the clock starts: the first call of a process costs seconds, once


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=900)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--floor", choices=FLOORS, help=argparse.SUPPRESS)
    parser.add_argument("--run-dir", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.floor:
        print(json.dumps(FLOORS[args.floor](args.run_dir)))
        return
    # Ray runs workers at nice 15; beside anything else on the machine they would lose to floors that run at nice 0.
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112
    from online_dpo import load_config, run

    rounds: list[dict[str, float]] = []
    floors: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        prompts = Path(folder) / "prompts.jsonl"
        prompts.write_text("".join(json.dumps({"prompt": f"film {i} begins with"}) + "\n" for i in range(args.prompts)))
        for repeat in range(args.repeats):
            overrides = [
                f"run.dir={folder}",
                f"run.rounds={2 * repeat + 2}",
                f"prompts.source={prompts}",
                f"prompts.per_round={args.prompts}",
            ]
            result = run(load_config("configs/reviews.yaml", overrides))
            rounds.append(result.rounds[-1].seconds)
            floors.append({})
            for name in FLOORS:
                command = [sys.executable, __file__, "--floor", name, "--run-dir", str(result.run_dir)]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                floors[-1] |= json.loads(done.stdout.splitlines()[-1])
    report(rounds, floors)


def report(rounds: list[dict[str, float]], floors: list[dict[str, float]]) -> None:
    for title, measured in (("stage of the round", rounds), ("bare floor", floors)):
        print(f"| {title} | s |\n|---|---|")
        for name in measured[0]:
            print(f"| {name} | {statistics.median(m[name] for m in measured):.2f} |")
        print()
    ratios = [sum(a.values()) / sum(count_once(b).values()) for a, b in zip(rounds, floors, strict=True)]
    whole, bare = (statistics.median(sum(count_once(m).values()) for m in side) for side in (rounds, floors))
    shown = ", ".join(f"{ratio:.3f}" for ratio in ratios)
    print(f"round {whole:.1f} s over floors {bare:.1f} s: {statistics.median(ratios):.3f} (median of {shown})")
    note("a whole round", whole, unit="s", beside="the sum of its bare floors", other=bare, aim="at most 1.10")


def count_once(floors: dict[str, float]) -> dict[str, float]:
    """The learner's work was done twice; the faster way is the floor."""
    faster = dict(floors)
    for name in [name for name in floors if name.endswith(OURS)]:
        plain = name.removesuffix(OURS) + PLAIN
        del faster[max(name, plain, key=floors.__getitem__)]
    return faster


PLAIN, OURS = " (plain loop)", " (our learner, no Ray)"


def timed(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def read_run(run_dir: Path) -> tuple[Any, Any, Any]:
    """Config, last round, and what the run's config says of its model."""
    from online_dpo.commands.run import recorded_config
    from online_dpo.models.inspection import inspect_model
    from online_dpo.models.locating import locate
    from online_dpo.store.run_store import RunStore

    config = recorded_config(run_dir)
    store = RunStore.read(run_dir)
    model = inspect_model(locate(config.model.path, field="model.path"), field="model.path")
    return config, store.round(store.finished_rounds()[-1]), model


def completions_of(last: Any, base: str) -> list[Any]:
    from online_dpo.types import Completion

    return [c for name in last.names(f"{base}completions/") for c in last.get_records(name, Completion)]


def evaluation_prompts(config: Any, model: Any) -> list[Any]:
    from online_dpo.commands.preparing.inputs import prepare

    return list(prepare(config).job.evaluation_sets["heldout"])


def bare_generation(run_dir: Path) -> dict[str, float]:
    config, last, model = read_run(run_dir)
    os.environ.update(
        VLLM_ENABLE_V1_MULTIPROCESSING="0",
        VLLM_CPU_KVCACHE_SPACE="1",
        VLLM_LOGGING_LEVEL="ERROR",
        OMP_NUM_THREADS=str(config.generator.threads),
    )
    from vllm import LLM, SamplingParams

    from online_dpo.types import Prompt

    llm = LLM(
        model=str(model.folder), dtype=config.model.dtype, max_model_len=config.max_model_len, max_num_seqs=256,
        enforce_eager=True, generation_config="vllm", disable_log_stats=True,
    )  # fmt: skip

    def generate(prompts: list[Any], completions: list[Any]) -> None:
        ids = {prompt.prompt_id: list(prompt.token_ids) for prompt in prompts}
        requests: list[Any] = [{"prompt_token_ids": ids[c.prompt_id]} for c in completions]
        params = [
            SamplingParams(
                seed=c.seed, temperature=1.0, max_tokens=config.sampling.max_tokens, logprobs=0,
                stop_token_ids=list(model.eos_token_ids),
            )
            for c in completions
        ]  # fmt: skip
        llm.generate(requests, params, use_tqdm=False)

    prompts, completions = last.get_records("prompts", Prompt), completions_of(last, "")
    heldout, evaluated = evaluation_prompts(config, model), completions_of(last, "evaluation/heldout/")
    generate(prompts, completions[:WARM_UP])
    return {
        "generation": timed(lambda: generate(prompts, completions)),
        "evaluation: generation": timed(lambda: generate(heldout, evaluated)),
    }


def bare_judging(run_dir: Path) -> dict[str, float]:
    import torch

    from judges.protocol import Question
    from judges.registry import build, make_spec
    from online_dpo.types import Prompt, group_by_prompt

    config, last, model = read_run(run_dir)
    torch.set_num_threads(config.generator.threads)  # alone on the machine, it may use all of it
    judge = build(make_spec(config.judge, field="judge", base_dir=Path.cwd()))

    def questions(prompts: list[Any], completions: list[Any]) -> list[Question]:
        texts = {prompt.prompt_id: prompt.content for prompt in prompts}
        return [
            Question(prompt_id=key, prompt=texts[key], completions=tuple(c.text for c in group))
            for key, group in group_by_prompt(completions).items()
        ]

    samples = questions(last.get_records("prompts", Prompt), completions_of(last, ""))
    evaluated = questions(evaluation_prompts(config, model), completions_of(last, "evaluation/heldout/"))
    asyncio.run(judge.judge(samples[:WARM_UP]))
    return {
        "reward model": timed(lambda: asyncio.run(judge.judge(samples))),
        "evaluation: reward model": timed(lambda: asyncio.run(judge.judge(evaluated))),
    }


def bare_learning(run_dir: Path) -> dict[str, float]:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from online_dpo.types import Pair

    config, last, model = read_run(run_dir)
    torch.set_num_threads(config.learner.threads)
    base = AutoModelForCausalLM.from_pretrained(model.folder, dtype=torch.float32)
    policy = get_peft_model(base, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"))
    optimizer = torch.optim.AdamW([p for p in policy.parameters() if p.requires_grad], lr=1e-3)

    def logps(rows: list[tuple[tuple[int, ...], tuple[int, ...]]]) -> torch.Tensor:
        """Sums of completion log-probs, logits at completion positions only: what a careful plain loop does."""
        longest = max(len(p) + len(c) for p, c in rows)
        ids = torch.zeros(len(rows), longest, dtype=torch.long)
        mask = torch.zeros_like(ids, dtype=torch.bool)
        for i, (p, c) in enumerate(rows):
            ids[i, : len(p) + len(c)] = torch.tensor(p + c)
            mask[i, len(p) : len(p) + len(c)] = True
        hidden = policy.base_model.model.model(input_ids=ids).last_hidden_state[:, :-1]
        wanted = mask[:, 1:]
        logits = policy.base_model.model.lm_head(hidden[wanted]).log_softmax(-1)
        token = logits.gather(1, ids[:, 1:][wanted].unsqueeze(1)).squeeze(1)
        row = torch.arange(len(rows)).unsqueeze(1).expand_as(wanted)[wanted]
        return torch.zeros(len(rows)).index_add(0, row, token)

    pairs = last.get_records("pairs", Pair)
    rows = [[(p.prompt.token_ids, c.token_ids) for c in (p.chosen, p.rejected)] for p in pairs]
    size = config.learner.batch_pairs
    batches = [[row for pair in rows[i : i + size] for row in pair] for i in range(0, len(rows), size)]

    def reference() -> None:
        with torch.no_grad():
            for batch in batches:
                logps(batch)

    def steps() -> None:
        for batch in batches:
            values = logps(batch)
            loss = -torch.nn.functional.logsigmoid(0.1 * (values[0::2] - values[1::2])).mean()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

    heldout = {p.prompt_id: p.token_ids for p in evaluation_prompts(config, model)}
    evaluated = [(heldout[c.prompt_id], c.token_ids) for c in completions_of(last, "evaluation/heldout/")]
    first_shard = [row for batch in batches for row in batch][: config.generator.shard_prompts * 4]

    def score(samples: list[Any], times: int) -> None:
        with torch.no_grad():
            for _ in range(times):
                for i in range(0, len(samples), 2 * size):
                    logps(samples[i : i + 2 * size])

    logps(batches[0])
    return {
        f"reference pass{PLAIN}": timed(reference),
        f"LoRA steps{PLAIN}": timed(steps),
        "evaluation: KL (policy, reference, initial)": timed(lambda: score(evaluated, 3)),
        "checks: re-scoring the first samples, twice": timed(lambda: score(evaluated or first_shard, 2)),
    }


def our_learning(run_dir: Path) -> dict[str, float]:
    from online_dpo.commands.preparing.inputs import prepare
    from online_dpo.commands.preparing.specs import learner_spec
    from online_dpo.learner.learner import Learner
    from online_dpo.types import Pair

    config, last, _ = read_run(run_dir)
    learner = Learner(learner_spec(prepare(config)))
    pairs = last.get_records("pairs", Pair)
    learner.reference_logps(pairs[:WARM_UP], [None])
    figures = {f"reference pass{OURS}": timed(lambda: learner.reference_logps(pairs, [None]))}

    def steps() -> None:
        for step in range(learner.begin_round(0, pairs)):
            learner.step(step)

    return {**figures, f"LoRA steps{OURS}": timed(steps)}


FLOORS: dict[str, Callable[[Path], dict[str, float]]] = {
    "generation": bare_generation,
    "judging": bare_judging,
    "learning": bare_learning,
    "our learning": our_learning,
}

if __name__ == "__main__":
    main()
