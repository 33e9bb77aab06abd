"""A learner of two workers on Ray: a whole run on pairs, without an engine, and again with a worker killed in it."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

from engine_kit import Tape, World
from loop_runs import comparable

from online_dpo.config.loading import load_config
from online_dpo.loop.stages import Event


class Killer(Tape):
    """Kills the second worker once a step was taken of which there is no checkpoint."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world, self.killed = world, 0

    def hear(self, event: Event) -> None:
        super().hear(event)
        if event.kind == "step" and event.data["step"] == 2 and not self.killed:
            assert self.world.stages._learner is not None
            _, (self.killed, _) = self.world.stages._learner.host._processes
            os.kill(self.killed, signal.SIGKILL)


def test_a_run_with_two_workers_ends_the_same_when_one_is_killed(
    tmp_path: Path, tiny_model: Path, ray_local: None
) -> None:
    rows = [{"prompt": f"film {i}?", "chosen": "kind words", "rejected": "rude " * (1 + i % 5)} for i in range(9)]
    for name in ("train", "heldout"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = load_config(
        {
            "run": {"name": "run", "dir": str(tmp_path / "runs"), "rounds": 1},
            "model": {"path": str(tiny_model)},
            "pairs": {"source": str(tmp_path / "train.jsonl"), "max_prompt_tokens": 64, "max_completion_tokens": 32},
            "evaluation": {"pairs": {"people": {"source": str(tmp_path / "heldout.jsonl"), "count": 4}}},
            "objective": {"type": "bco_pair"},
            "learner": {"lr": 1e-2, "batch_pairs": 2, "num_workers": 2, "checkpoint_steps": 2, "lora": {"r": 8}},
        }
    )
    assert config.cluster.num_cpus == "auto"
    world = World(config)
    try:
        world.run(tmp_path / "whole")
        killer = Killer(world)
        world.run(tmp_path / "killed", tape=killer)
    finally:
        world.close()
    assert killer.killed
    whole, killed = comparable(tmp_path / "whole"), comparable(tmp_path / "killed")
    incidents = [record for record in killed["metrics.jsonl"] if record["kind"] == "incident"]
    assert len(incidents) == 1 and "rank 1 of 2: its process ended" in incidents[0]["what"], incidents
    killed["metrics.jsonl"] = [record for record in killed["metrics.jsonl"] if record["kind"] != "incident"]
    assert len([record for record in whole["metrics.jsonl"] if record["kind"] == "step"]) == 5
    assert {name for name in whole | killed if whole.get(name) != killed.get(name)} <= {"actors.log"}
