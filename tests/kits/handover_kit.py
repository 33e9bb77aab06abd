"""A finished run of the embedded models, written through the store in a second: its policies are random adapters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from online_dpo.commands.preparing.inputs import inspect_inputs, load_inputs
from online_dpo.commands.preparing.provenance import run_info
from online_dpo.commands.run import portable_yaml
from online_dpo.config.loading import load_config
from online_dpo.data.prompts import Cursor
from online_dpo.embedded import resolve
from online_dpo.loop.control import Control
from online_dpo.store.run_store import RunStore
from online_dpo.types import Adapter

PER_ROUND, NUM_ROUNDS = 3, 2
JUDGE = """
def score(prompt, completion, metadata):
    return 0.5 * len(completion) + metadata["bonus"]
"""


def random_adapter(seed: int, folder: Path, *, r: int = 4) -> dict[str, bytes]:
    """The files of a LoRA of the embedded policy that changes it visibly."""
    torch.manual_seed(seed)
    base = AutoModelForCausalLM.from_pretrained(resolve("policy"))
    targets = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    model = get_peft_model(base, LoraConfig(r=r, lora_alpha=2 * r, target_modules=targets))
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.02)
    model.save_pretrained(folder)
    files = {name: (folder / name).read_bytes() for name in ("adapter_config.json", "adapter_model.safetensors")}
    return Adapter.from_files(0, files).files()


def write_handover_run(folder: Path, rows: list[dict[str, Any]], **sections: Any) -> Path:
    """The run directory of two finished rounds; the current folder must be `folder`.

    Args:
        folder: gets `prompts.jsonl`, `mine.py` and the run.
        rows: of the prompts.
        sections: of the config; replace those of the same name.
    """
    import json

    (folder / "mine.py").write_text(JUDGE)
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = load_config(
        {
            "run": {"name": "demo", "dir": str(folder / "runs"), "rounds": NUM_ROUNDS},
            "model": {"path": "embedded:policy"},
            "prompts": {"source": str(folder / "prompts.jsonl"), "per_round": PER_ROUND, "max_tokens": 64},
            "sampling": {"num_samples": 2, "max_tokens": 8},
            "judge": {"type": "python", "target": "mine.py:score"},
            "reference": {"type": "every", "rounds": 1},
            "learner": {"lr": 1e-3, "lora": {"r": 4, "alpha": 8}, "batch_pairs": 2},
            **sections,
        }
    )
    materials = load_inputs(inspect_inputs(config))
    config = materials.config
    with RunStore.create(config.run_dir, config_yaml=portable_yaml(config), info=run_info(materials)) as store:
        cursor = Cursor()
        for index in range(NUM_ROUNDS):
            part = store.round(index)
            draw = materials.job.prompts.draw(cursor, PER_ROUND) if materials.job.prompts is not None else None
            if draw is not None:
                cursor = draw.cursor
                part.put_records("prompts", draw.prompts)
            part.put_files("adapter", random_adapter(index, folder / f"adapter-{index}"))
            if index == 0 or config.reference.type == "every":
                part.put_files("reference", random_adapter(10 + index, folder / f"reference-{index}"))
            figures = {"outcomes": {"paired": 3}, "num_pairs": 3, "evaluation": {}, "warnings": [], "seconds": {}}
            store.append_metrics({"kind": "round_done", "round": index, "policy_version": index + 1, **figures})
            state = {
                "control": Control().to_dict(),
                "metrics": store.metrics_position(),
                "cursor": cursor.to_dict(),
                "pairs_cursor": Cursor().to_dict(),
                "reference_versions": [index + 1],
            }
            store.finish_round(index, state)
    return config.run_dir
