"""A driver in small: makes run directories with every kind of commit, and resumes them."""

from __future__ import annotations

import os
from pathlib import Path

from online_dpo.store.run_store import RoundStore, RunStore
from online_dpo.types import Completion, Prompt

CONFIG, AMENDED = "run: {rounds: 2}\n", "run: {rounds: 3}\n"
INFO = {"packages": {"torch": "2.13.0"}, "base_model": {"sha256": "00ff"}}
PROMPT = Prompt(prompt_id="p0", token_ids=(5, 6), text="The film", metadata={"id": 7})
COMPLETION = Completion(
    prompt_id="p0",
    sample_index=1,
    token_ids=(9, 2),
    text=" was fine",
    finish_reason="stop",
    sampler_logps=(-0.5, -1.25),
    policy_version=1,
    seed=2**63 - 1,
)
Promised = dict[tuple[int, str], dict[str, bytes]]


def play(path: Path, promised: Promised, *, num_rounds: int = 2, prune: bool = True) -> None:
    """A driver in small: every kind of commit, in order, skipping what is there. `promised` is what must survive."""
    store = RunStore.open(path) if RunStore.exists(path) else RunStore.create(path, config_yaml=CONFIG, info=INFO)
    with store:
        done = store.finished_rounds()
        store.truncate_metrics(store.round(done[-1]).state()["metrics"] if done else None)
        for index in range(len(done), num_rounds):
            if prune:
                store.prune_optimizer()
            if index == 1:
                store.amend(config_yaml=AMENDED)
            play_round(store.round(index), promised)
            store.append_metrics({"round": index, "loss": 0.5})
            store.finish_round(index, {"metrics": store.metrics_position(), "cursor": index})
            promised[index, "state"] = store.round(index).get_files("state")
            # From here on these may be pruned.
            for name in [name for number, name in promised if number == index and name.startswith("learner/")]:
                del promised[index, name]
        if prune:
            store.prune_optimizer()


def play_round(current: RoundStore, promised: Promised, *, until: str = "") -> None:
    def keep(name: str) -> bool:
        promised[current.index, name] = current.get_files(name)
        return name == until

    def prune(num: int) -> None:
        for name in current.names("learner/step-")[: -num or None]:
            promised.pop((current.index, name), None)  # while it is being removed it may be there or not
        current.prune_checkpoints(keep=num)

    for name, record in {"prompts": PROMPT, "completions/shard-00000": COMPLETION}.items():
        if not current.has(name):
            current.put_records(name, [record])
        keep(name)
    for step in (1, 2) if not current.has("learner/final") else ():
        name = f"learner/step-{step:06d}"
        if max(current.names("learner/step-"), default="") < name:
            current.put_files(name, {"adapter.safetensors": b"a" * step, "state/optimizer.safetensors": b"o"})
            if keep(name):
                return
        prune(1)
    if not current.has("learner/final"):
        current.put_files("learner/final", {"optimizer.safetensors": b"final", "schedule.json": b"{}\n"})
    keep("learner/final")
    prune(0)
    if not current.has("adapter"):
        current.put_files("adapter", {"adapter_config.json": b"{}", "adapter_model.safetensors": b"lora" * 9})
    keep("adapter")
    if not current.has("evaluation/heldout.v2"):
        current.put_json("evaluation/heldout.v2", {"reward": 0.1, "naïve": None})
    keep("evaluation/heldout.v2")


def tree(path: Path) -> dict[str, bytes]:
    files = [Path(parent, name) for parent, _, names in os.walk(path) for name in names if name != "lock"]
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in files}


def examine(path: Path) -> None:
    """What a resume checks before it goes on; raises if anything committed is damaged."""
    with RunStore.open(path) as store:
        store.verify()
        done = store.finished_rounds()
        store.truncate_metrics(store.round(done[-1]).state()["metrics"] if done else None)
