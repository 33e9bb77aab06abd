"""Does everything work on one GPU, and how fast? Each step stands alone, so that the first failure hides nothing.

    make gpu-check                                          # installs the `gpu` extra first, and reports that too
    python3 benchmarks/gpu_check.py [--tiny] [--only NAME ...] [--out FOLDER] [--budget-s 480]

The steps live in `benchmarks/gpu_steps/`. Each group of them is a process with a time limit of its own, and all of them
together have a budget, after the installation: what does not fit any more is reported as not run. Models are random
weights in known shapes, made on the device; nothing is fetched from a hub. Writes `report.json`, `report.md` (the table
of docs/performance.md) and a log for each process. Exit code 1 where a step failed or was not run.

`--tiny` takes shapes of some thousand weights, for a machine without a GPU: the same code, and no figure of interest.
This file imports the standard library alone, since it runs before anything is installed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

ROOT = Path(__file__).resolve().parents[1]
STEPS = "benchmarks/gpu_steps"
GRACE_S = 15.0
"""Within which a process that took too long may end by itself."""

MARK = "gpu-check "
"""Lines of a process that begin so report a step, as JSON."""


@dataclass(frozen=True, slots=True)
class Job:
    """A process that reports some steps."""

    command: tuple[str, ...]  # after the interpreter
    limit_s: float
    steps: tuple[str, ...]  # in the order of the report

    @property
    def name(self) -> str:
        return self.steps[0]


@dataclass(slots=True)
class Step:
    """What became of a step."""

    name: str
    result: Literal["ok", "failed", "skipped", "not run"]
    seconds: float = 0.0
    detail: str = ""
    figures: dict[str, Any] = field(default_factory=dict)


JOBS = (
    Job((f"{STEPS}/rounds.py", "installed"), 120, ("installed",)),
    Job((f"{STEPS}/rounds.py", "quickstart"), 150, ("quickstart",)),
    # A process has one engine, since vLLM can let only one of them sleep; so these report two steps each.
    Job((f"{STEPS}/engine.py", "merge"), 100, ("push by merge", "sleep, push by merge")),
    Job((f"{STEPS}/engine.py", "lora"), 100, ("push by lora", "sleep, push by lora")),
    Job((f"{STEPS}/learner.py", "packed"), 90, ("packed attention",)),
    Job((f"{STEPS}/learner.py", "ours"), 90, ("learner, 8 B",)),
    Job((f"{STEPS}/learner.py", "trl"), 110, ("TRL's DPOTrainer, 8 B",)),
    Job((f"{STEPS}/rounds.py", "0.5b"), 120, ("round, 0.5 B",)),
    Job((f"{STEPS}/rounds.py", "8b"), 200, ("round, 8 B",)),
    Job((f"{STEPS}/learner.py", "separate"), 90, ("learner with padded rows, 8 B",)),
    Job((f"{STEPS}/engine.py", "nf4"), 100, ("push to an nf4 base",)),
)
ORDER = (
    "install", "install, nf4", "installed", "quickstart", "push by merge", "push by lora", "packed attention",
    "sleep, push by merge", "sleep, push by lora", "learner, 8 B", "TRL's DPOTrainer, 8 B", "round, 0.5 B",
    "round, 8 B", "learner with padded rows, 8 B", "push to an nf4 base",
)  # fmt: skip
"""Of the report."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="tiny shapes, with or without a GPU")
    parser.add_argument("--only", nargs="*", help="names of steps; their whole processes run")
    parser.add_argument("--out", type=Path, default=Path("gpu-check"))
    parser.add_argument("--budget-s", type=float, default=480.0, help="seconds for all steps after the installation")
    parser.add_argument("--install", action="store_true", help="`make install` first, as a step")
    parser.add_argument("--python", default=str(ROOT / ".venv/bin/python"), help="interpreter of the steps")
    args = parser.parse_args(arguments)
    args.out.mkdir(parents=True, exist_ok=True)
    done: list[Step] = []
    if args.install:
        for name, target in (("install", "install"), ("install, nf4", "install-nf4")):
            done += run_job(Job(("make", target), 1800, (name,)), ["make", target], args.out, 1800)
    jobs = [job for job in JOBS if not args.only or set(job.steps) & set(args.only)]
    try:
        done += run_all(jobs, args)
    finally:
        shutil.rmtree(args.out / "models", ignore_errors=True)  # 17 GiB
    machine = next((step.figures for step in done if step.name == "installed"), {})
    write_report(done, machine, args.out, tiny=args.tiny)
    print((args.out / "report.md").read_text())
    return int(any(step.result in ("failed", "not run") for step in done))


def run_all(jobs: Sequence[Job], args: argparse.Namespace, clock: Callable[[], float] = time.monotonic) -> list[Step]:
    """Every job in turn, until the budget is used up."""
    done: list[Step] = []
    begun = clock()
    for job in jobs:
        left = args.budget_s - (clock() - begun)
        if left <= 0:
            reason = f"the budget of {args.budget_s:g} s was used up"
            done += [Step(name, "not run", detail=reason) for name in job.steps]
            continue
        options = ["--folder", str(args.out.resolve() / "models"), *(["--tiny"] if args.tiny else [])]
        done += run_job(job, [args.python, *job.command, *options], args.out, min(left, job.limit_s))
    return done


def run_job(job: Job, command: list[str], out: Path, limit_s: float) -> list[Step]:
    """Run a process and take in what it reports; a step that it does not report has failed, and its log says why."""
    log = out / f"{''.join(c if c.isalnum() else '-' for c in job.name)}.log"
    print(f"{job.name} ...", file=sys.stderr, flush=True)
    begun, late = time.monotonic(), False
    with log.open("w") as file:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True
        )
        try:
            code = process.wait(timeout=limit_s)
        except subprocess.TimeoutExpired:
            late, code = True, -signal.SIGKILL
            _signal_group(process.pid, signal.SIGTERM)  # a run then ends its Ray, which holds the GPU's memory
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=GRACE_S)
        _signal_group(process.pid, signal.SIGKILL)  # a step that is over needs none of its processes
        process.wait()
    seconds = time.monotonic() - begun
    lines = log.read_text(errors="replace").splitlines()
    found = [Step(**json.loads(line.removeprefix(MARK))) for line in lines if line.startswith(MARK)]
    silent = [name for name in job.steps if name not in {step.name for step in found}]
    if silent and code == 0 and not late and command[0] == "make":
        return [Step(job.name, "ok", seconds)]
    why = f"it took longer than {limit_s:.0f} s" if late else f"its process ended with code {code}"
    said = [line.strip() for line in lines if line.strip() and not line.startswith(MARK)]
    last = " | ".join(said[-3:])
    return found + [Step(name, "failed", seconds, f"{why}; see {log.name}: {last}"[:600]) for name in silent]


def _signal_group(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, number)


def write_report(done: Sequence[Step], machine: dict[str, Any], out: Path, *, tiny: bool) -> None:
    """`report.json`, and `report.md` with a row for each step."""
    places = {name: place for place, name in enumerate(ORDER)}
    steps = sorted(done, key=lambda step: places.get(step.name, len(places)))
    report = {"machine": machine, "tiny": tiny, "steps": [asdict(step) for step in steps]}
    (out / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    about = ", ".join(f"{name} {value}" for name, value in machine.items()) or "unknown"
    lines = [f"Machine: {about}.{' Tiny shapes: no figure means anything.' if tiny else ''}", ""]
    lines += ["| step | result | s | figures |", "|---|---|---|---|"]
    for step in steps:
        shown = "; ".join(f"{name} {_number(value)}" for name, value in step.figures.items())
        told = "; ".join(part for part in (shown, step.detail.replace("|", "/")) if part)
        lines.append(f"| {step.name} | {step.result} | {step.seconds:.0f} | {told} |")
    (out / "report.md").write_text("\n".join(lines) + "\n")


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main())
