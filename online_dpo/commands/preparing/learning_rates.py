"""`learner.lr: auto`: settled once from the model's shape when a run begins, and kept when it is continued."""

from __future__ import annotations

import json
import math

from online_dpo.config.learner import AUTO_LR, AUTO_LR_ALPHA, MAX_AUTO_LR, LoraSection
from online_dpo.config.run import RunConfig
from online_dpo.errors import ConfigError
from online_dpo.models.inspection import ModelInfo
from online_dpo.types import Adapter


def automatic_lr(*, hidden_size: int, num_layers: int, alpha: float) -> float:
    """The learning rate at which a first step moves log-ratios about equally far in any model, bounded; two digits.

    Adam moves every entry of B by the rate, so a step moves a log-prob by the rate times the sum of the gradient's
    absolute values. That sum grows with the hidden size, with about the square root of the number of layers, and with
    `alpha` whatever the rank is (measured: docs/results.md). It is at most the rate of the embedded policy: above it,
    a trained small model moved too far. Only LoRA is trained, so nothing else has a rate.

    Args:
        hidden_size: of the residual stream.
        num_layers: of the decoder.
        alpha: the numerator of LoRA's scale alpha / r.
    """
    lr = min(AUTO_LR / (hidden_size * math.sqrt(num_layers)), MAX_AUTO_LR)
    return float(f"{lr * AUTO_LR_ALPHA / alpha:.1e}")


def settle_lr(config: RunConfig, model: ModelInfo, adapter: Adapter | None) -> RunConfig:
    """The config with a number in the place of `learner.lr: auto`, so that it is recorded with the run.

    Args:
        config: of a run.
        model: that it trains.
        adapter: that it continues, whose alpha is then its own.

    Raises:
        ConfigError: the model's config does not say how large it is.
    """
    if config.learner.lr != "auto":
        return config
    if not model.hidden_size or not model.num_layers:
        raise ConfigError(
            f"learner.lr is auto, and config.json of {config.model.path} names no hidden size or no number of layers; "
            f"set a number, such as 5e-5"
        )
    alpha = (config.learner.lora or LoraSection()).alpha
    if adapter is not None:
        alpha = float(json.loads(adapter.config)["lora_alpha"])
    lr = automatic_lr(hidden_size=model.hidden_size, num_layers=model.num_layers, alpha=alpha)
    return _with_lr(config, lr)


def keep_recorded_lr(config: RunConfig, recorded: RunConfig) -> RunConfig:
    """The config with the recorded number in the place of `learner.lr: auto`, for a run that is continued."""
    return _with_lr(config, recorded.learner.lr) if config.learner.lr == "auto" else config


def _with_lr(config: RunConfig, lr: float | str) -> RunConfig:
    return config.model_copy(update={"learner": config.learner.model_copy(update={"lr": lr})})
