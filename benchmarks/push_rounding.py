"""What rounding of merged weights to bfloat16 costs: nearest and stochastic rounding beside an engine in float32.

    python benchmarks/push_rounding.py play RESULTS.jsonl --engine bfloat16 --rates 5e-6 5e-4 --seeds 0 1 --minutes 8
    python benchmarks/push_rounding.py table RESULTS.jsonl

`play` plays runs of the reviews task with the embedded policy, whose base is stored in bfloat16, in one process: one
vLLM engine, a learner for each run, the loop and its checks as they are, no Ray. It appends a line for each run, leaves
out those that are there, and starts none once its minutes are over. `table` prints what is there; nothing is asserted.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

from roundings import kl_of_roundings, merged_stochastically

from online_dpo.models import merging
from online_dpo.models.merging import merged_tensors  # as it is: `play` puts another one into the module

JUDGES = ("reward", "gold")
WAYS = (("bfloat16", "nearest"), ("bfloat16", "stochastic"), ("float32", "nearest"))
"""Precision of the engine, and rounding; in float32 nothing is lost. The others are compared with the first."""


class Stages:
    """`online_dpo.loop.stages.Stages` in this process; what is started runs when somebody waits for it."""

    def __init__(self, generator: Any, learner: Any, judges: Mapping[str, Any], events: Any) -> None:
        self.report: Any = None
        self.learner = learner
        self._generator, self._judges, self._events = generator, judges, events
        self._is_fresh = False

    def push(self, adapter: Any, version: int) -> list[Any]:
        self._is_fresh = True
        return [self._generator.push(adapter, version)]

    def probe(self, rows: Sequence[Any]) -> list[Any]:
        return [self._generator.probe(rows)]

    def start_sampling(self, shard: Any, plan: Any, version: int) -> Any:
        return partial(self._sample, shard, plan, version)

    def _sample(self, shard: Any, plan: Any, version: int) -> Any:
        from online_dpo.types import Sampled

        first, self._is_fresh = self._is_fresh, False
        return Sampled(first_since_push=first, completions=tuple(self._generator.sample(shard, plan, version)))

    def start_judging(self, judge: str, shard: Any, completions: Sequence[Any], *, again: bool = False) -> Any:
        host = self._judges[judge]
        return lambda: self._events.run_until_complete(host.judge_shard(shard, completions, again))

    def start_rescoring(self, rows: Sequence[Any], under: Sequence[Any]) -> Any:
        return self.start_learner("check_logps", rows, under)

    def start_learner(self, method: str, *args: Any) -> Any:
        return partial(getattr(self.learner, method), *args)

    def first_done(self, tasks: Sequence[Any]) -> tuple[Any, Any]:
        return tasks[0], tasks[0]()

    def recover(self, error: Exception) -> None:
        raise error


def key_of(run: Mapping[str, Any]) -> tuple[Any, ...]:
    """What a run is told from others by."""
    return tuple(run[name] for name in ("engine", "rounding", "rate", "seed", "rounds"))


def config_of(run: Mapping[str, Any], folder: str) -> Any:
    """The reviews task, with a learner in bfloat16 and the engine and rate of the run."""
    from online_dpo import load_config

    overrides = [
        f"run.dir={folder}",
        f"run.rounds={run['rounds']}",
        f"run.seed={run['seed']}",
        "model.dtype=bfloat16",
        f"generator.dtype={run['engine']}",
        "generator.rescored=64",
        "generator.shard_prompts=112",
        "prompts.per_round=96",
        "evaluation.sets.heldout.count=112",
        f"evaluation.every={run['rounds']}",
        f"learner.lr={run['rate']}",
    ]
    return load_config(Path(__file__).parents[1] / "configs" / "reviews.yaml", overrides)


def start_engine(config: Any) -> Any:
    from actors.generator import EngineSpec, Generator
    from online_dpo.commands.preparing.inputs import inspect_inputs

    model = inspect_inputs(config).model
    spec = EngineSpec(
        model_folder=str(model.folder),
        trust_remote_code=False,
        dtype=config.engine_dtype,
        max_model_len=config.max_model_len,
        max_num_seqs=256,
        weight_push="merge",
        lora_rank=config.learner.lora.r,
        lora_targets=("q_proj",),
        tensor_parallel=1,
        eos_token_ids=model.eos_token_ids,
        gpu_memory_utilization=0.5,
        block_size=None,
        enforce_eager=True,
        seed=0,
    )
    return Generator(spec)


def play(args: argparse.Namespace) -> None:
    """Every run that is wanted and not yet in the file, while there is time."""
    os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    from actors.judge_host import JudgeHost
    from online_dpo.commands.preparing.inputs import prepare

    begun = time.monotonic()
    done = {key_of(run) for run in read(args.results)}
    roundings = {"nearest": merged_tensors}
    if args.engine == "bfloat16":
        roundings["stochastic"] = merged_stochastically
    wanted = [
        {"engine": args.engine, "rounding": rounding, "rate": rate, "seed": seed, "rounds": args.rounds}
        for seed in args.seeds
        for rate in args.rates
        for rounding in roundings
    ]
    wanted = [run for run in wanted if key_of(run) not in done]
    if not wanted:
        return
    config = config_of(wanted[0], "runs")
    generator, events = start_engine(config), asyncio.new_event_loop()
    judges = {name: JudgeHost(spec) for name, spec in prepare(config).judges.items()}
    for run in wanted:
        started = time.monotonic()
        if started - begun > 60.0 * args.minutes:
            break
        merging.merged_tensors = roundings[run["rounding"]]
        with tempfile.TemporaryDirectory() as folder:
            run |= play_one(config_of(run, folder), generator, judges, events)
        run["seconds"] = round(time.monotonic() - started, 1)
        with args.results.open("a") as file:
            file.write(json.dumps(run) + "\n")
        print(*key_of(run), run["seconds"], run["applied"], run["gaps"], flush=True)


def play_one(config: Any, generator: Any, judges: Mapping[str, Any], events: Any) -> dict[str, Any]:
    """One run; what it tells of its pushes, rounds and held-out scores."""
    from online_dpo.commands.preparing.inputs import prepare
    from online_dpo.commands.preparing.provenance import run_info
    from online_dpo.commands.preparing.specs import learner_spec
    from online_dpo.commands.run import play as play_rounds
    from online_dpo.commands.run import portable_yaml
    from online_dpo.learner.learner import Learner
    from online_dpo.loop.evaluation import committed_evaluation
    from online_dpo.store.run_store import RunStore

    materials = prepare(config)
    stages = Stages(generator, Learner(learner_spec(materials)), judges, events)
    with RunStore.create(config.run_dir, config_yaml=portable_yaml(config), info=run_info(materials)) as store:
        play_rounds(materials, stages, store, [])
        records = list(store.metrics())
        last = config.run.rounds
        scores = {version: committed_evaluation(store, "heldout", version)["scores"] for version in (0, last)}
        kl = rounding_kl(store, last, materials.model.folder, materials.job.evaluation_sets["heldout"])
    pushed = [record for record in records if record["kind"] == "pushed"]
    rescored = [record for record in records if record["kind"] == "rescored"]
    rounds = [record for record in records if record["kind"] == "round_done"]
    found = rounds[-1]["evaluation"]["heldout"]
    return {
        "applied": [round(record["applied"], 4) for record in pushed if "applied" in record],
        "gaps": {
            name: [round(record[name], 6) for record in records_of if name in record]
            for records_of, names in (
                (pushed, ("probe_gap", "probe_gap_row_max", "probe_gap_previous")),
                (rescored, ("sampled_gap", "sampled_gap_row_max", "sampled_gap_max", "sampled_gap_previous")),
            )
            for name in names
        },
        "rewards": [record["reward"] for record in rounds],
        "kl_initial": found["kl_initial"],
        "gains": {judge: gains(scores[0][judge], scores[last][judge]) for judge in JUDGES},
        "kl": kl,
    }


def gains(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """What the score of each held-out prompt's answer gained."""
    return {prompt: after[prompt] - before[prompt] for prompt in before if prompt in after}


def rounding_kl(store: Any, last: int, folder: Path, prompts: Sequence[Any]) -> dict[str, list[float]]:
    """`kl_of_roundings` of the first, middle and last update, on 48 held-out samples."""
    import torch
    from transformers import AutoModelForCausalLM

    from online_dpo.loop.references import policy_of
    from online_dpo.loop.rollouts import rows_of
    from online_dpo.types import Completion

    names = store.round(last - 1).names("evaluation/heldout/completions/")
    samples = [sample for name in names for sample in store.round(last - 1).get_records(name, Completion)]
    rows = rows_of(prompts, samples[:48])
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    versions = sorted({1, (last + 1) // 2, last})
    found = [kl_of_roundings(model, folder, policy_of(store, v, None), rows) for v in versions]
    return {name: [each[name] for each in found] for name in found[0]}


def read(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def table(runs: Sequence[Mapping[str, Any]]) -> None:
    """A row for each rate and way: means over seeds, and what it gained more than nearest rounding did."""
    print("| lr | engine | seeds | applied, by push | KL of rounding (update) | KL to initial | reward | gold ", end="")
    print("| more than nearest: reward | gold | reward of samples |\n|" + "---|" * 11)
    for rate in sorted({run["rate"] for run in runs}, key=float):
        nearest = of_way(runs, rate, WAYS[0])
        for way in WAYS:
            if found := of_way(runs, rate, way):
                both = [seed for seed in found if seed in nearest]
                ours, theirs = ({seed: side[seed] for seed in both} for side in (found, nearest))
                cells = [rate, ", ".join(way), str(len(found)), *figures(list(found.values()))]
                cells += [estimate({}, gains_by_seed(found, judge)) for judge in JUDGES]
                if way == WAYS[0]:
                    cells += [""] * 3
                else:
                    cells += [estimate(gains_by_seed(theirs, j), gains_by_seed(ours, j)) for j in JUDGES]
                    more = [mean(ours[s]["rewards"][1:]) - mean(theirs[s]["rewards"][1:]) for s in both]
                    cells.append(f"{mean(more):+.3f} ({', '.join(f'{value:+.2f}' for value in more)})")
                print(f"| {' | '.join(cells)} |")
    print()
    for way in WAYS:
        found = [run["gaps"] for run in runs if (run["engine"], run["rounding"]) == way]
        for name in found[0] if found else ():
            values = [value for gaps in found for value in gaps[name]]
            print(f"{', '.join(way)}: {name} {min(values):.4f} to {max(values):.4f}, mean {mean(values):.4f}")


def of_way(runs: Sequence[Mapping[str, Any]], rate: str, way: tuple[str, str]) -> dict[int, Mapping[str, Any]]:
    """Seed -> run."""
    return {r["seed"]: r for r in runs if r["rate"] == rate and (r["engine"], r["rounding"]) == way}


def gains_by_seed(runs: Mapping[int, Mapping[str, Any]], judge: str) -> dict[str, float]:
    return {f"{seed} {prompt}": gain for seed, run in runs.items() for prompt, gain in run["gains"][judge].items()}


def estimate(before: Mapping[str, float], after: Mapping[str, float]) -> str:
    """Mean gain with its interval over prompts and seeds."""
    from online_dpo.statistics.samples import paired_bootstrap

    found = paired_bootstrap(before or dict.fromkeys(after, 0.0), after, seed=0)
    return "" if found is None else "{:+.2f} [{:+.2f}, {:+.2f}]".format(*found)


def figures(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Means over runs: the share of each push, KL of the first and of the last one's rounding, KL to the base."""
    applied = [mean(values) for values in zip(*(run["applied"] for run in runs), strict=True)]
    way = "none" if runs[0]["engine"] == "float32" else runs[0]["rounding"]
    kls = []
    for push in (0, -1):
        lost, update = (mean(run["kl"].get(name, {push: 0.0})[push] for run in runs) for name in (way, "update"))
        kls.append(f"{lost:.1e} ({update:.1e})")
    shown = [", ".join(f"{value:.2f}" for value in applied), ", ".join(kls)]
    return [*shown, f"{mean(run['kl_initial'] for run in runs):.2g}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("play")
    one.add_argument("results", type=Path)
    one.add_argument("--engine", choices=("bfloat16", "float32"), default="bfloat16")
    one.add_argument("--rates", nargs="+", default=["5e-6", "5e-5", "5e-4"])
    one.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    one.add_argument("--rounds", type=int, default=6)
    one.add_argument("--minutes", type=float, default=8.0)
    other = commands.add_parser("table")
    other.add_argument("results", type=Path)
    args = parser.parse_args()
    if args.command == "play":
        play(args)
    else:
        table(read(args.results))


if __name__ == "__main__":
    main()
