"""Trains a reward model, measures it as a judge would use it, and writes folder, report and card at once."""

from __future__ import annotations

import asyncio
import importlib.metadata
import json
import math
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from judges.protocol import Question
from online_dpo.commands.handover.folders import expect_new, new_folder
from online_dpo.commands.reward_model.card import write_card
from online_dpo.commands.reward_model.preferences import Sides, prepare_sides
from online_dpo.config.reward_model.section import RewardModelConfig
from online_dpo.data.preference_files import peek_preferences
from online_dpo.errors import ConfigError, ModelError
from online_dpo.importing import quick_imports
from online_dpo.models.inspection import ModelInfo, inspect_model
from online_dpo.models.locating import locate
from online_dpo.models.tokenizer import check_ids, load_tokenizer
from online_dpo.statistics.reward_models import describe_preferences

REPORT = "reward_model.json"
PACKAGES = ("online-dpo", "torch", "transformers", "peft", "trl")


def train_reward_model(config: RewardModelConfig, tell: Callable[[str], None]) -> dict[str, Any]:
    """Train a reward model and write it to a new folder, which appears when it is whole.

    Args:
        config: of the training.
        tell: prints a line.

    Returns:
        The report, as the folder has it.

    Raises:
        UserError: the config, the preferences or the model is wrong, TRL is missing, or the folder cannot be written.
        TrainingError: a loss is no finite number.
    """
    out = Path(config.output)
    expect_new(out, field="output")
    if find_spec("trl") is None:
        raise ConfigError(
            "a reward model is trained by the package trl, which is not installed; pip install 'online-dpo[trl]'"
        )
    for field, source in (("pairs", config.pairs), ("heldout.pairs", config.heldout.pairs)):
        if source is not None:
            peek_preferences(source, field=field)
    base = inspect_model(locate(config.model.path, field="model.path"), field="model.path", generates=False)
    with quick_imports():
        from online_dpo.commands.reward_model.training import train
    tokenizer = load_tokenizer(base.folder, trust_remote_code=config.model.trust_remote_code)
    check_ids(tokenizer.get_vocab(), f"model.path is {config.model.path}", vocab_size=base.vocab_size)
    if config.model.chat_template is not None:
        tokenizer.chat_template = config.model.chat_template
    # The judge takes the tokenizer's limit where its own section gives none, and so cuts where the training did.
    tokenizer.model_max_length = _max_tokens(config, base, tokenizer)
    sides = prepare_sides(config, tokenizer, tokenizer.model_max_length)
    tell(f"{len(sides.training)} pairs to train on, {len(sides.heldout)} held out")
    with new_folder(out, field="output") as folder:
        trained = train(config, base.folder, tokenizer, sides.training, folder, tell)
        report = {
            **_provenance(config, base, tokenizer.model_max_length),
            "data": {
                "num_training_pairs": len(sides.training),
                "num_heldout_pairs": len(sides.heldout),
                "read": {place: dict(sorted(counts.items())) for place, counts in sides.counts.items()},
            },
            "training": trained,
            "heldout": measure(config, folder, sides),
        }
        text = json.dumps(report, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False)
        (folder / REPORT).write_text(text + "\n", encoding="utf-8")
        write_card(report, folder / "README.md")
    return report


def measure(config: RewardModelConfig, folder: Path, sides: Sides) -> dict[str, Any]:
    """The figures of the held-out pairs, scored by the judge that will use the model.

    Args:
        config: of the training.
        folder: of the trained model.
        sides: whose held-out pairs are scored.
    """
    from judges.reward.reward_model import RewardModel

    judge = RewardModel(
        str(folder), dtype=config.model.dtype, trust_remote_code=config.model.trust_remote_code, on_gpu=True
    )
    held = [pair.preference for pair in sides.heldout]
    questions = [
        Question(prompt_id=str(number), prompt=one.prompt, completions=(one.chosen, one.rejected))
        for number, one in enumerate(held)
    ]
    scores = [(chosen.score, rejected.score) for chosen, rejected in asyncio.run(judge.judge(questions))]
    lengths = [pair.lengths for pair in sides.heldout]
    return describe_preferences(scores, lengths, [one.key for one in held], seed=config.seed)  # type: ignore[arg-type]


def _max_tokens(config: RewardModelConfig, base: ModelInfo, tokenizer: Any) -> int:
    context = min(base.max_model_len or math.inf, tokenizer.model_max_length)
    if config.max_tokens is None:
        return int(context)
    if config.max_tokens > (base.max_model_len or math.inf):
        raise ModelError(
            f"max_tokens is {config.max_tokens} and {config.model.path} has {base.max_model_len} positions; set it to "
            f"at most that"
        )
    return config.max_tokens


def _provenance(config: RewardModelConfig, base: ModelInfo, max_tokens: int) -> dict[str, Any]:
    """The config without places of this machine, what it began with, and the versions of what computed."""
    import torch

    settings = config.model_dump(mode="json", exclude={"output"})
    settings["max_tokens"] = max_tokens
    for section, key in (
        (settings["model"], "path"),
        (settings["pairs"], "source"),
        (settings["heldout"]["pairs"], "source"),
        (settings["run"], "dir"),
        (settings["votes"], "dir"),
    ):
        if section is not None:
            section[key] = _without_folder(section[key])
    return {
        "config": settings,
        "base_fingerprint": base.fingerprint,
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "threads": torch.get_num_threads(),
    }


def _without_folder(place: str) -> str:
    """A hub id or an embedded name as it is; of a local path its last part."""
    path = Path(place).expanduser()
    return path.resolve().name if path.exists() or path.is_absolute() else place
