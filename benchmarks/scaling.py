"""How far does one driver scale? A real run whose engines sleep instead of computing.

    python benchmarks/scaling.py [--generators 1 2 4 8 16 32 64] [--shards 8] [--seconds 4] [--tokens 128]
    python benchmarks/scaling.py --memory 100000

Everything is real but the engines and the learner: the loop, its commits, Ray and its actors, the judge's host. An
engine answers a shard of 64 prompts with 4 completions each after `--seconds`, that is 64 completions a second; the
learner answers at once, with zeros; the judge counts words. Each number of generators is a run of its own, of two
rounds: the first warms up. Prints the completions that are committed in a second, against as many engines that wait for
nobody, and those that are judged as well; the driver's CPU time for each completion, while it samples and judges and
over the whole round (drawing, reading back, figures, pairs); and the memory that the engines' actors have of their own.
With `--memory`: the driver's memory after each round of a run of so many completions. Asserts nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
from one_table import note

SHARD_PROMPTS, NUM_SAMPLES, VOCABULARY = 64, 4, 4096
SHARD = SHARD_PROMPTS * NUM_SAMPLES
WORDS = {"type": "length_penalty", "rate": 0.01, "judge": {"type": "verifier", "method": "exact", "answer": "answer"}}
"""A judge without a process of its own."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generators", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--shards", type=int, default=8, help="of each generator in a round")
    parser.add_argument("--seconds", type=float, default=4.0, help="that an engine takes for a shard")
    parser.add_argument("--tokens", type=int, default=128, help="of a completion")
    parser.add_argument("--memory", type=int, help="completions of a run whose memory is watched")
    parser.add_argument("--profile", type=Path, help="where the profile of the last run's driver is written")
    parser.add_argument("--play", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.play is not None:
        print(json.dumps(play(args, args.play)))
    elif args.memory:
        report_memory(args)
    else:
        report_scaling(args)


def report_scaling(args: argparse.Namespace) -> None:
    rate = SHARD / args.seconds
    print("| generators | sampled/s | of linear | sampled and judged/s | driver CPU ms: sampling | whole round | GiB |")
    print("|---|---|---|---|---|---|---|")
    for number in args.generators:
        found = in_process(args, number)
        share = found["sampled_per_s"] / (number * rate)
        print(
            f"| {number} | {found['sampled_per_s']:.0f} | {share:.3f} | {found['judged_per_s']:.0f} | "
            f"{found['sampling_ms']:.3f} | {found['round_ms']:.3f} | {found['actors_gib']:.1f} |",
            flush=True,
        )
    what = f"{number} generators: "
    note(
        what + "completions per s", found["sampled_per_s"], unit="1/s", beside="linear", other=number * rate, aim="0.95"
    )
    note(what + "driver CPU while sampling", found["sampling_ms"], unit="ms per completion", aim="0.3 ms")
    note(what + "driver CPU of a whole round", found["round_ms"], unit="ms per completion", aim="0.3 ms")


def report_memory(args: argparse.Namespace) -> None:
    found = in_process(args, 16)
    print("| completions | driver's MiB after the round |\n|---|---|")
    for number, mebibytes in found["memory"]:
        print(f"| {number} | {mebibytes:.0f} |")
    print(f"\ndriver CPU: {found['round_ms']:.3f} ms a completion; peak {found['peak_mib']:.0f} MiB")
    (first, early), (last, late) = found["memory"][1], found["memory"][-1]
    note(
        f"driver's memory after {last} completions", late, unit="MiB", beside=f"after {first}", other=early, aim="flat"
    )


def in_process(args: argparse.Namespace, number: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--play", str(number)]
    for name in ("shards", "seconds", "tokens", "memory", "profile"):
        if getattr(args, name) is not None:
            command += [f"--{name}", str(getattr(args, name))]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


class SleepingEngine:
    """Stands in the place of `actors.generator.Generator`. Imports neither torch nor vLLM."""

    seconds, tokens = 4.0, 128

    def __init__(self, spec: Any) -> None:
        from actors.heartbeat import Progress, beat

        self._progress = Progress()
        beat(self._progress.count)
        rng = random.Random(0)
        self._ids = tuple(rng.choices(range(VOCABULARY), k=VOCABULARY + self.tokens))
        self._logps = tuple(-rng.expovariate(1.0) for _ in self._ids)
        self._words = [f"w{token}" for token in self._ids]

    def ready(self) -> tuple[int, str]:
        from actors.heartbeat import here

        return here()

    def push(self, adapter: Any, version: int) -> Any:
        from online_dpo.models.merging import Received

        return Received(digest=None if adapter is None else adapter.digest)

    def probe(self, rows: Sequence[Any]) -> list[list[float]]:
        return [[0.0] * len(row.completion_ids) for row in rows]

    def sample(self, shard: Any, plan: Any, version: int) -> list[Any]:
        from online_dpo.types import Completion, derive_seed

        began = time.monotonic()
        found = []
        for prompt in shard.prompts:
            for index in range(plan.num_samples):
                seed = derive_seed(plan.run_seed, plan.purpose, plan.round_index, prompt.prompt_id, index)
                start = seed % VOCABULARY
                ids = self._ids[start : start + self.tokens - seed % 16]
                found.append(
                    Completion(
                        prompt_id=prompt.prompt_id,
                        sample_index=index,
                        token_ids=ids,
                        text=" ".join(self._words[start : start + len(ids)]),
                        finish_reason="length",
                        sampler_logps=self._logps[start : start + len(ids)],
                        policy_version=version,
                        seed=seed,
                    )
                )
        time.sleep(max(0.0, self.seconds - (time.monotonic() - began)))
        self._progress.add()
        return found

    def close(self) -> None: ...


class IdleLearner:
    """Stands in the place of `actors.learner_host.LearnerHost`: every log-prob is 0, and a round is one step."""

    def __init__(self, spec: Any, membership: Any) -> None: ...

    def ready(self) -> tuple[int, str]:
        from actors.heartbeat import here

        return here()

    def notices(self) -> list[str]:
        return []

    def initial_adapter(self) -> None:
        return None

    def policy(self, version: int) -> Any:
        from online_dpo.types import Adapter

        return Adapter(version=version, weights=str(version).encode(), config=b"{}")

    def score(self, rows: Sequence[Any], under: Sequence[Any]) -> list[Any]:
        from online_dpo.types import Scores

        zeros = tuple((0.0,) * len(row.completion_ids) for row in rows)
        return [Scores(token_logps=zeros, entropies=zeros) for _ in under]

    def check_logps(self, rows: Sequence[Any], under: Sequence[Any]) -> list[Any]:
        return [scores.token_logps for scores in self.score(rows, under)]

    def reference_logps(self, items: Sequence[Any], references: Sequence[Any]) -> list[Any]:
        from online_dpo.learner.items import kind_of

        return [
            kind_of(item).with_reference(
                item, [[[0.0] * len(row.completion_ids)] for row in kind_of(item).scored_rows(item)]
            )
            for item in items
        ]

    def begin_round(self, round_index: int, items: Sequence[Any], beta_factor: float = 1.0) -> int:
        return 1

    def step(self, step: int) -> dict[str, float]:
        return {"loss": 0.7, "reward_accuracy": 0.5, "reward_margin": 0.1, "grad_norm": 1.0, "clipped": 0.0}

    def checkpoint(self) -> dict[str, bytes]:
        return {"state.json": b"{}"}

    def restore(self, files: Any) -> None: ...


class Watch:
    """CPU and wall-clock seconds of each round of the driver, and its memory after it."""

    def __init__(self) -> None:
        self.rounds: list[dict[str, float]] = []

    def note(self, line: str) -> None: ...

    def round_done(self, result: Any) -> None: ...

    def hear(self, event: Any) -> None:
        now = {"wall": time.monotonic(), "cpu": time.process_time()}
        if event.kind == "round_started":
            self._began = now
        elif event.kind == "stage" and event.data["stage"] == "sampling":
            self._sampling = now
        elif event.kind == "shard_sampled":  # the last one of the round stays
            self._sampled = now
        elif event.kind == "shard_judged":
            self._judged = now
        elif event.kind == "round_committed":
            self.rounds.append(
                {
                    "sampled_s": self._sampled["wall"] - self._sampling["wall"],
                    "judged_s": self._judged["wall"] - self._sampling["wall"],
                    "sampling_cpu": self._judged["cpu"] - self._sampling["cpu"],
                    "cpu": now["cpu"] - self._began["cpu"],
                    "mib": psutil.Process().memory_info().rss / 2**20,
                }
            )


def play(args: argparse.Namespace, generators: int) -> dict[str, Any]:
    """One run in this process."""
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112
    from actors import cluster, resources
    from actors.session import ray_session
    from online_dpo.commands import run as running
    from online_dpo.commands.preparing.inputs import prepare
    from online_dpo.commands.preparing.provenance import run_info
    from online_dpo.commands.preparing.specs import engine_spec, learner_spec
    from online_dpo.config.loading import load_config
    from online_dpo.store.run_store import RunStore

    SleepingEngine.seconds, SleepingEngine.tokens = args.seconds, args.tokens
    cluster.LearnerHost = IdleLearner  # type: ignore[misc,assignment,attr-defined]
    per_round = generators * args.shards * SHARD_PROMPTS
    rounds = 2 if args.memory is None else -(-args.memory // (per_round * NUM_SAMPLES))
    watch = Watch()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        prompts = Path(folder) / "prompts.jsonl"
        rows = ({"prompt": f"film {i} begins with", "answer": "good"} for i in range(per_round))
        prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
        sections: dict[str, Any] = {
            "run": {"dir": folder, "rounds": rounds},
            "model": {"path": "embedded:policy"},
            "prompts": {"source": str(prompts), "per_round": per_round, "max_tokens": 64},
            "sampling": {"num_samples": NUM_SAMPLES, "max_tokens": args.tokens},
            "generator": {
                "replicas": generators,
                "shard_prompts": SHARD_PROMPTS,
                "tolerance": 1e9,
                "rescored": 1,
            },
            "judge": WORDS,
            "evaluation": {"sets": {}},
        }
        materials = prepare(load_config(sections))
        config = materials.config
        stack.enter_context(ray_session(config.cluster, num_cpus_needed=resources.cpus_needed(config)))
        stages = cluster.RayStages(config, engine_spec(materials), generator_class=SleepingEngine)  # type: ignore[arg-type]
        stack.callback(stages.close)
        stages.start_judges(materials.judges, learner_spec(materials), first=materials.first)
        yaml = running.portable_yaml(config)
        store = stack.enter_context(RunStore.create(config.run_dir, config_yaml=yaml, info=run_info(materials)))
        stages.start_engines(learner_spec(materials))
        profiled(args.profile, lambda: running.play(materials, stages, store, [watch]))
        processes = psutil.Process().children(recursive=True)
        actors = [p.memory_full_info().uss for p in processes if "SleepingEngine" in " ".join(p.cmdline())]
    num, last = per_round * NUM_SAMPLES, watch.rounds[-1]
    return {
        "sampled_per_s": num / last["sampled_s"],
        "judged_per_s": num / last["judged_s"],
        "sampling_ms": 1e3 * last["sampling_cpu"] / num,
        "round_ms": 1e3 * last["cpu"] / num,
        "actors_gib": sum(actors) / 2**30,
        "memory": [(num * (i + 1), found["mib"]) for i, found in enumerate(watch.rounds)],
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10,
    }


def profiled(path: Path | None, work: Any) -> None:
    if path is None:
        work()
        return
    import cProfile

    profile = cProfile.Profile()
    profile.runcall(work)
    profile.dump_stats(path)


if __name__ == "__main__":
    main()
