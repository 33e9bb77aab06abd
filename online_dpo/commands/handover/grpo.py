"""`online-dpo export --for grpo`: a folder in which one script goes on with TRL's `GRPOTrainer`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from online_dpo.commands.handover.folders import base_name, copy_model, write_adapter, write_merged
from online_dpo.commands.handover.judging import write_judge_config
from online_dpo.commands.handover.starting_point import StartingPoint
from online_dpo.commands.handover.templates import one_line, render
from online_dpo.commands.handover.trainer_data import write_prompts
from online_dpo.types import Adapter

SCRIPT = "train_grpo.py"
SETTINGS = "train_grpo.yaml"  # of the script
BETA = 0.04
"""Weight of the KL to the reference: that of the paper on GRPO (arXiv:2402.03300, section 4.2)."""
RESERVED = (
    "prompt", "prompts", "completion", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric",
    "environments", "image", "images",
)  # fmt: skip
"""Columns that TRL does not hand on to reward functions, or hands on as something of its own."""


def write_grpo(start: StartingPoint, folder: Path, *, merge: bool) -> list[str]:
    """Write policy, reference, prompts, judge and the script.

    Args:
        start: what is continued.
        folder: to fill.
        merge: whole models rather than adapters.

    Returns:
        Lines about what cannot come along.
    """
    config = start.config
    notes = write_judge_config(config.judge, folder)
    notes += write_prompts(start.prompts, folder / "prompts.parquet", reserved=RESERVED)
    if config.sampling.stop:
        notes.append("sampling.stop is set, and TRL's GRPOTrainer has no such setting: answers go on until they end")
    values: dict[str, Any] = {"base": None, "merged": merge, "has_reference": start.reference is not None}
    if merge:
        _write_whole(start, start.policy, folder / "policy")
        _write_whole(start, start.reference, folder / "reference")
    else:
        for name, adapter in {"policy": start.policy, "reference": start.reference}.items():
            if adapter is not None:
                (folder / name).mkdir()
                write_adapter(adapter, folder / name)
        values["base"] = base_name(config.model.path, folder)
    script = render(
        "train_grpo.py.jinja",
        run=one_line(config.run.name),
        version=start.version,
        dtype=config.model.dtype,
        trust=", trust_remote_code=True" if config.model.trust_remote_code else "",
        **values,
    )
    (folder / SCRIPT).write_text(script)
    (folder / SETTINGS).write_text(_written(_settings(start)))
    return notes


_COMMENTS = {
    "shuffle_dataset": "the prompts in the order in which the run would have drawn them",
    "gradient_accumulation_steps": "prompts per step",
    "beta": "of the KL to the reference; 0 = none",
}


def _written(settings: Mapping[str, Any]) -> str:
    """YAML with a comment where a field's name does not say enough."""
    lines = [(name, yaml.safe_dump({name: value}, allow_unicode=True)) for name, value in settings.items()]
    return "".join(f"{line.rstrip()}  # {_COMMENTS[name]}\n" if name in _COMMENTS else line for name, line in lines)


def _settings(start: StartingPoint) -> dict[str, Any]:
    """Fields of `GRPOConfig` that follow from the run."""
    config = start.config
    return {
        "output_dir": "grpo",
        "seed": config.run.seed,
        "num_generations": config.sampling.num_samples,
        "per_device_train_batch_size": config.sampling.num_samples,
        "gradient_accumulation_steps": min(config.learner.batch_pairs, len(start.prompts)),
        "max_completion_length": config.sampling.max_tokens,
        "temperature": config.sampling.temperature,
        "top_p": config.sampling.top_p,
        "learning_rate": config.learner.peak_lr,
        "beta": BETA,
        "shuffle_dataset": False,
        "bf16": config.model.dtype == "bfloat16",
        "logging_steps": 1,
        "report_to": "none",
        "chat_template_kwargs": config.chat_template_kwargs or None,
    }


def _write_whole(start: StartingPoint, adapter: Adapter | None, folder: Path) -> None:
    folder.mkdir()
    if adapter is None:
        copy_model(start.base, folder)
    else:
        write_merged(start.base, adapter, folder, dtype=start.config.model.dtype)
