"""Whole runs with Ray, vLLM and the learner in turns on one GPU: the quickstart, and rounds at two sizes.

python benchmarks/gpu_steps/rounds.py installed|quickstart|0.5b|8b --folder FOLDER [--tiny] [--set SETTING=VALUE ...]
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from shapes import arguments, expect, random_ids, saved_model, step

JUDGE = "import zlib\n\n\ndef score(prompt, completion):\n    return zlib.crc32(completion.encode()) / 2**32\n"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--set", nargs="*", default=[], help="settings of the run that differ, such as run.rounds=1")
    args = arguments(["installed", "quickstart", "0.5b", "8b"], parser)
    if args.what == "installed":
        with step("installed") as figures:
            installed(figures, on_gpu=not args.tiny)
    elif args.what == "quickstart":
        with step("quickstart") as figures:
            quickstart(figures, args.set, tiny=args.tiny)
    else:
        with step(f"round, {args.what.replace('b', ' B')}") as figures:
            play(args.what, args.folder, figures, args.set, tiny=args.tiny)


def installed(figures: dict[str, Any], *, on_gpu: bool) -> None:
    """PyTorch sees the GPU and computes on it, and vLLM imports."""
    import torch
    import vllm

    figures["CPU cores"] = len(os.sched_getaffinity(0))
    for name in ("torch", "transformers", "peft", "ray", "trl"):
        figures[name] = importlib.metadata.version(name)
    figures["vllm"] = vllm.__version__
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        figures |= {"GPU": properties.name, "GPU memory, GiB": properties.total_memory / 2**30}
        figures["CUDA"] = str(torch.version.cuda)
        expect(torch.ones(2, device="cuda").sum().item() == 2.0, "PyTorch does not compute on the GPU")
    expect(torch.cuda.is_available() or not on_gpu, "PyTorch sees no GPU; was the gpu extra installed?")


def quickstart(figures: dict[str, Any], changes: list[str], *, tiny: bool) -> None:
    """What `online-dpo quickstart` runs, with all its checks."""
    from online_dpo.commands.quickstart import CONFIG
    from online_dpo.config.loading import load_config

    shorter = ["run.rounds=1", "prompts.per_round=8", "evaluation.sets.heldout.count=4"] if tiny else []
    with tempfile.TemporaryDirectory() as folder:
        config = load_config(CONFIG, [f"run.dir={folder}", "run.name=quickstart", *shorter, *changes])
        figures |= run_and_measure(config)


def play(size: str, folder: Path, figures: dict[str, Any], changes: list[str], *, tiny: bool) -> None:
    """Two rounds of random prompts; the figures are those of the second, whose policy is no longer the base model."""
    from online_dpo.config.loading import load_config

    shape, large = "tiny" if tiny else size, size == "8b" and not tiny
    if large and shutil.disk_usage(folder.parent).free < 40 * 2**30:
        raise OSError(f"{folder.parent} has less than 40 GiB free, and a model of 16 GiB is to be written there")
    model = saved_model(shape, folder)
    per_round, prompt, completion = (4, 12, 8) if tiny else (32, 256, 128)
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / "judge.py").write_text(JUDGE)
        with (Path(place) / "prompts.jsonl").open("w") as file:
            for i in range(2 * per_round):
                words = " ".join(f"w{token}" for token in random_ids(shape, prompt, seed=i))
                file.write(json.dumps({"prompt": words}) + "\n")
        settings = {
            "run": {"dir": place, "name": "round", "rounds": 2},
            "layout": "colocated",
            "model": {"path": str(model), "dtype": "bfloat16"},
            "prompts": {"source": f"{place}/prompts.jsonl", "per_round": per_round, "max_tokens": prompt},
            "sampling": {"num_samples": 4, "max_tokens": completion},
            # Compiling would take longer than all that is measured here.
            "generator": {"shard_prompts": per_round // 2, "enforce_eager": True, "gpu_memory_utilization": 0.5},
            "judge": {"type": "python", "target": f"{place}/judge.py:score"},
            "learner": {"lr": 1e-4, "batch_pairs": 8, "activation_checkpointing": large, "checkpoint_steps": 0},
        }
        figures |= run_and_measure(load_config(settings, changes))


def run_and_measure(config: Any) -> dict[str, Any]:
    """Play a run; seconds per stage of its last round, and the widest gap that its checks found."""
    from online_dpo import run
    from online_dpo.reports.listening import Listener

    class Notes(Listener):
        def __init__(self) -> None:
            self.num_tokens, self.gaps, self.memory = 0, [0.0], [0.0]

        def note(self, line: str) -> None:
            print(line, flush=True)

        def hear(self, event: Any) -> None:
            print(f"{time.monotonic() - begun:.1f} s: {event.kind}", flush=True)  # where a run was when its time was up
            if event.kind == "round_started":
                self.num_tokens = 0
            if event.kind == "shard_sampled":
                self.num_tokens += event.data["num_tokens"]
            if event.kind in ("pushed", "rescored"):
                self.gaps += [event.data[name] for name in ("probe_gap", "sampled_gap") if name in event.data]
            if event.kind in ("shard_sampled", "step"):
                self.memory.append(used_gib())

    notes, begun = Notes(), time.monotonic()
    result = run(config, listeners=(notes,))
    expect(result.stopped is None and len(result.rounds) == config.run.rounds, f"the run stopped: {result.stopped}")
    with (config.run_dir / "metrics.jsonl").open() as file:
        seconds = [found for line in file if (found := json.loads(line).get("seconds"))][-1]
    figures = {f"{stage}, s": value for stage, value in seconds.items()}
    figures |= {"tokens sampled": notes.num_tokens, "widest gap": max(notes.gaps), "allowed": config.tolerance}
    if max(notes.memory):
        figures["GPU memory in use, GiB"] = max(notes.memory)
    return figures


def used_gib() -> float:
    """Of the first GPU, by all processes; 0 without one."""
    if shutil.which("nvidia-smi") is None:
        return 0.0
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "--id=0"]
    found = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    return float(found) / 1024 if found.replace(".", "").isdigit() else 0.0


if __name__ == "__main__":
    main()
