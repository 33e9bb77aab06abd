"""A real world for tests of the loop: vLLM generators, a learner and a judge as Ray actors, and ways to break them."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

from actors.cluster import RayStages
from online_dpo.commands.preparing.inputs import Materials, prepare
from online_dpo.commands.preparing.specs import engine_spec, learner_spec
from online_dpo.commands.run import play
from online_dpo.config.loading import dump_config, load_config
from online_dpo.loop.stages import Event
from online_dpo.reports.listening import Listener
from online_dpo.store.run_store import RunStore

JUDGE = """
def score(prompt, completion):
    return completion.count("e") - completion.count("t") + len(completion) / 100
"""
# Prompts of more than 64 tokens: with blocks of 32 the prefix cache has two full blocks of each.
FILLER = "the quick brown fox jumps over the lazy dog and keeps running through the tall grass until evening comes "


class Tape(Listener):
    """Hears every event."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.lines: list[str] = []

    def note(self, line: str) -> None:
        self.lines.append(line)

    def hear(self, event: Event) -> None:
        self.events.append(event)

    def last(self, kind: str) -> dict[str, Any]:
        return dict([event for event in self.events if event.kind == kind][-1].data)


def small_config(folder: Path, model: Path, overrides: Sequence[str] = ()) -> Any:
    """Two rounds of eight long prompts in two shards, the reference refreshed every round."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "judge.py").write_text(JUDGE)
    for name, count in (("train", 16), ("heldout", 4)):
        rows = [{"prompt": f"{name} {i}: {FILLER}{FILLER}{i}"} for i in range(count)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    mapping = {
        "run": {"name": "run", "dir": str(folder / "runs"), "rounds": 2},
        "model": {"path": str(model)},
        "prompts": {"source": str(folder / "train.jsonl"), "per_round": 8, "max_tokens": 160},
        "sampling": {"num_samples": 3, "max_tokens": 12},
        "generator": {"shard_prompts": 4, "block_size": 32},
        "judge": {"type": "python", "target": f"{folder / 'judge.py'}:score"},
        "evaluation": {"sets": {"heldout": {"source": str(folder / "heldout.jsonl"), "count": 4}}},
        "reference": {"type": "every", "rounds": 1},
        "learner": {"lr": 1e-2, "batch_pairs": 4, "checkpoint_steps": 1, "lora": {"r": 8, "alpha": 16}},
    }
    return load_config(mapping, overrides)


def left_of(processes: Sequence[psutil.Process], timeout_s: float, idle: str | None = None) -> list[str]:
    """Names of those that still run after so long. Neither a zombie counts, whoever should have waited for it, nor one
    of the name `idle`."""

    def runs(process: psutil.Process) -> bool:
        try:
            return process.is_running() and process.status() != psutil.STATUS_ZOMBIE and process.name() != idle
        except psutil.NoSuchProcess:
            return False

    deadline = time.monotonic() + timeout_s
    while (left := [p for p in processes if runs(p)]) and time.monotonic() < deadline:
        time.sleep(0.2)
    return [process.name() for process in left]


class World:
    """Actors that live as long as this object; each run starts from the same fresh learner."""

    def __init__(self, config: Any) -> None:
        self.materials: Materials = prepare(config)
        self.stages = RayStages(self.materials.config, engine_spec(self.materials))
        learner = learner_spec(self.materials)
        self.stages.start_judges(self.materials.judges, learner, first=self.materials.first)
        self.stages.start_engines(learner)
        self._fresh = self.stages.learner.checkpoint()

    def run(self, path: Path, config: Any = None, tape: Tape | None = None) -> Tape:
        """Play the rounds in a new run directory, optionally of a config that needs no other actors."""
        self.stages.learner.restore(self._fresh)
        tape, materials = tape or Tape(), self.materials
        if config is not None:
            materials = replace(materials, config=config, job=replace(materials.job, config=config))
        with RunStore.create(path, config_yaml=dump_config(materials.config), info={}) as store:
            play(materials, self.stages, store, [tape])
        return tape

    def kill(self, name: str) -> None:
        """SIGKILL the process of an actor: `learner`, `judge` or `generator`."""
        stages = self.stages
        hosts = {
            "learner": stages._learner and stages._learner.host,
            "judge": stages._judges["reward"],
            "generator": stages._generators[0],
        }
        os.kill(hosts[name]._processes[0][0], signal.SIGKILL)

    def sabotage(self, change: Any) -> None:
        """Run `change(generator)` inside the generator's process."""
        self.stages._generators[0].call("__ray_call__", change)

    def close(self) -> None:
        self.stages.close()
