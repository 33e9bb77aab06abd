"""The section `sft`: what run it stands for, and that its result is made once, whoever is killed when."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from config_kit import BASE

from online_dpo.commands.preparing.fork_stages import check_later_round, first_stage, is_taken
from online_dpo.commands.preparing.sft import initial_policy, sft_run
from online_dpo.commands.run import _keep_sft
from online_dpo.commands.status import read_status
from online_dpo.config.loading import dump_config, load_config
from online_dpo.config.run import RunConfig
from online_dpo.errors import ConfigError, RunDirectoryError
from online_dpo.reports.results import LearningResult, RoundResult
from online_dpo.store.run_store import RunStore

SECTION = {
    "pairs": {"source": "demos.jsonl", "format": "demonstrations", "append_eos": True, "max_completion_tokens": 99},
    "rounds": 2,
    "lr": 3e-3,
    "schedule": "linear",
}


def with_sft(**further: Any) -> dict[str, Any]:
    return {**BASE, "sft": SECTION, **further}


def test_the_run_it_stands_for() -> None:
    config = load_config(
        with_sft(
            run={"name": "chain", "dir": "runs", "rounds": 7, "seed": 5},
            prompts={**BASE["prompts"], "chat_template_kwargs": {"enable_thinking": False}},
            evaluation={
                "sets": {"held": {"source": "held.jsonl"}},
                "pairs": {
                    "kept": {"source": "d.jsonl", "format": "demonstrations"},
                    "left": {"source": "p.jsonl"},
                },
            },
            learner={"lora": {"r": 4}, "lr": 1e-5, "epochs": 3, "batch_pairs": 8, "threads": 1},
            objective={"type": "ipo"},
            logging={"trackers": ["tensorboard"]},
            overlap=1,
            layout="separate",
        )
    )
    found = sft_run(config)
    assert (found.run_dir, found.run.rounds, found.run.seed) == (Path("runs/chain/sft"), 2, 5)
    assert (found.learner.lr, found.learner.schedule, found.learner.epochs) == (3e-3, "linear", 1)
    assert (found.learner.batch_pairs, found.learner.lora) == (8, config.learner.lora)
    assert found.pairs is not None and found.pairs.is_whole_run and found.pairs.append_eos
    assert found.chat_template_kwargs == {"enable_thinking": False} and found.objective.type == "sft"
    assert list(found.evaluation.pairs) == ["kept"] and not found.needs_generators and found.logging.trackers == []
    assert load_config(dump_yaml(found)) == found  # it is committed, and read again


def dump_yaml(config: RunConfig) -> dict[str, Any]:
    import yaml

    return dict(yaml.safe_load(dump_config(config)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sft": {"pairs": {"source": "x"}}}, "sft.pairs.format is pairs; SFT trains on demonstrations alone"),
        ({"sft": {"pairs": {**SECTION["pairs"], "fraction": 0.5}}}, "sft.pairs.fraction is 0.5"),  # type: ignore[dict-item]
        (
            {"sft": {"pairs": {**SECTION["pairs"], "chat_template_kwargs": {"a": 1}}}},  # type: ignore[dict-item]
            "set prompts.chat_template_kwargs, which holds for sft as well",
        ),
        (
            {"pairs": {**SECTION["pairs"], "warm_start_rounds": 1}, "sft": None},  # type: ignore[dict-item]
            "or move demonstrations into the section sft",
        ),
    ],
)
def test_what_is_wrong_is_named_with_its_remedy(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(with_sft(**change))
    assert message in str(error.value) and "\n" not in str(error.value)


class Launch:
    """Plays rounds of fine-tuning without a learner, up to as many as it may."""

    def __init__(self, num_rounds: int) -> None:
        self.num_rounds, self.played = num_rounds, list[int]()

    def __call__(self, config: RunConfig, *, listeners: Sequence[Any]) -> None:
        make = RunStore.open if RunStore.exists(config.run_dir) else None
        store = RunStore.create(config.run_dir, config_yaml="a: 1\n", info={}) if make is None else make(config.run_dir)
        with store:
            for index in range(len(store.finished_rounds()), self.num_rounds):
                files = {"adapter_model.safetensors": bytes([index]), "adapter_config.json": b"{}"}
                store.round(index).put_files("adapter", files)
                store.finish_round(index, {"metrics": store.metrics_position()})
                self.played.append(index)
                result = RoundResult(round=index, policy_version=index + 1, learning=LearningResult(loss=2.0 - index))
                listeners[0].round_done(result)


def test_what_it_made_is_committed_once_and_is_not_made_again(tmp_path: Path) -> None:
    config = load_config(with_sft(run={"name": "r", "dir": str(tmp_path), "rounds": 2}, learner={"threads": 1}))
    lines: list[str] = []
    killed, resumed, never = Launch(1), Launch(2), Launch(0)
    with RunStore.create(config.run_dir, config_yaml="a: 1\n", info={}) as store:
        with pytest.raises(RunDirectoryError, match="has 1 of 2 rounds; continue with `online-dpo resume"):
            initial_policy(config, store, lines.append, killed)
        assert not store.round(0).has("initial-policy")
    with RunStore.open(config.run_dir) as store:
        found = initial_policy(config, store, lines.append, resumed)
        assert (found.version, found.weights) == (0, b"\1")
        assert initial_policy(config, store, lines.append, never) == found
        store.verify()
    assert (killed.played, resumed.played, never.played) == ([0], [1], [])
    assert [line for line in lines if "round" in line] == [
        "sft: round 1 of 2: loss 2.0000 nats per token",
        "sft: round 2 of 2: loss 1.0000 nats per token",
    ]


COMMAND = [sys.executable, "-m", "online_dpo.cli"]


def play(*arguments: str, cwd: Path, kill_at: Path | None = None) -> str:
    """Play a command to its end, or SIGKILL it as soon as a file is there."""
    process = subprocess.Popen([*COMMAND, *arguments], cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if kill_at is not None:
        deadline = time.monotonic() + 500
        while not kill_at.exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.002)
        os.kill(process.pid, signal.SIGKILL)
    output = process.communicate(timeout=500)[0].decode()
    assert kill_at is not None or process.returncode == 0, output
    return output


def data_files(run_dir: Path) -> dict[str, bytes]:
    """What the run computed, without times and what covers times."""
    timed = ("metrics.jsonl", "state.json", "manifest.json", "latest", "progress.json", "lock", "config.yaml")
    return {
        str(path.relative_to(run_dir)): path.read_bytes()
        for path in sorted(run_dir.rglob("*"))
        if path.is_file() and path.name not in timed and path.suffix != ".sha256" and "report" not in path.parts
    }


@pytest.mark.exhaustive
def test_killed_in_the_fine_tuning_and_right_after_it(tmp_path: Path, tiny_model: Path) -> None:
    """The same bytes as a whole run; what was committed is not made again; another judge keeps the fine-tuning."""
    rows = [{"prompt": f"film {i}?", "chosen": " kind words", "rejected": " a rude remark"} for i in range(24)]
    source = {"source": "d.jsonl", "max_prompt_tokens": 64, "max_completion_tokens": 32}
    mapping = {
        "run": {"name": "r", "rounds": 2},
        "model": {"path": str(tiny_model)},
        "sft": {"pairs": {**source, "format": "demonstrations", "completion": "chosen"}, "rounds": 2},
        "pairs": source,
        "evaluation": {"pairs": {"d": {"source": "d.jsonl", "count": 8}}},
        "learner": {"lr": 5e-3, "lora": {"r": 8}, "batch_pairs": 8, "checkpoint_steps": 1},
    }
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "c.yaml").write_text(json.dumps(mapping))
        (tmp_path / name / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    play("run", "c.yaml", cwd=tmp_path / "whole")
    killed, run_dir = tmp_path / "killed", tmp_path / "killed" / "runs" / "r"
    play("run", "c.yaml", cwd=killed, kill_at=run_dir / "sft" / "rounds" / "00000" / "manifest.json")
    first = run_dir / "sft" / "rounds" / "00000" / "adapter" / "adapter_model.safetensors"
    made = first.stat().st_mtime_ns
    assert "supervised fine-tuning before: 1 of 2" in play("status", "runs/r", cwd=killed)
    assert read_status(run_dir)["stage"] == "supervised fine-tuning before it, round 2 of 2"
    play("resume", "runs/r", cwd=killed, kill_at=run_dir / "rounds" / "00000" / "initial-policy.sha256")
    assert first.stat().st_mtime_ns == made
    assert not (run_dir / "rounds" / "00000" / "manifest.json").exists(), "the kill came too late to prove anything"
    # Under another config no round of which is finished, a new run begins; the fine-tuning is the same and stays.
    told = play("run", "c.yaml", "objective.beta=0.2", "run.rounds=1", cwd=killed)
    assert "a new run begins" in told and "sft: all 2 rounds" in told and first.stat().st_mtime_ns == made
    (killed / "runs").rename(killed / "of beta")
    assert data_files(killed / "of beta" / "r" / "sft") == data_files(tmp_path / "whole" / "runs" / "r" / "sft")
    play("run", "c.yaml", cwd=killed, kill_at=run_dir / "rounds" / "00000" / "initial-policy.sha256")
    play("resume", "runs/r", cwd=killed)
    assert data_files(run_dir) == data_files(tmp_path / "whole" / "runs" / "r")
    assert "all is whole, 2 finished rounds" in play("verify", "runs/r", cwd=killed)


def test_a_fork_takes_what_it_made_unless_the_fine_tuning_is_another_one() -> None:
    old, new = (load_config(with_sft(sft={**SECTION, "rounds": rounds})) for rounds in (2, 3))
    assert is_taken("initial-policy", "judge", changed=["judge.target"])
    assert first_stage(old, new, ["sft.rounds"])[0] == "sample"
    assert not is_taken("initial-policy", "sample", changed=["sft.rounds"])
    with pytest.raises(ConfigError, match=r"sft.rounds changed, and the policy that the round begins with was made"):
        check_later_round(old, new, ["sft.rounds"], 2, 1.0)


def test_a_changed_fine_tuning_is_not_taken_back(tmp_path: Path) -> None:
    """What is set aside stays there where the section is another one, or what lies there is no run."""
    config = load_config(with_sft(run={"name": "r", "dir": str(tmp_path)}, learner={"threads": 1}))
    aside = tmp_path / "r" / "set-aside" / "00001"
    Launch(1)(
        load_config({**dump_yaml(sft_run(config)), "run": {"name": "sft", "dir": str(aside)}}), listeners=[Told()]
    )
    _keep_sft(config, aside)
    assert (aside / "sft").is_dir() and not (tmp_path / "r" / "sft").exists()


class Told:
    def round_done(self, result: RoundResult) -> None:
        pass
