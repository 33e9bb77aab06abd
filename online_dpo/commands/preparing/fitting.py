"""Does the config fit the model and what is installed? Asked before anything slow is loaded."""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec

from online_dpo.config.run import RunConfig
from online_dpo.data.preferences import evaluation_limits
from online_dpo.errors import ConfigError
from online_dpo.models.inspection import ModelInfo
from online_dpo.models.shapes import ModelShape
from online_dpo.reports.trackers.registry import make_trackers


def check_lengths(config: RunConfig, model: ModelInfo | ModelShape) -> None:
    """Raises ConfigError when the longest prompt and completion do not fit into the model's context."""
    section = "prompts.max_tokens" if config.prompts is not None else "pairs.max_prompt_tokens"
    lengths = []
    if config.needs_generators:
        lengths.append((section, config.max_prompt_tokens, "sampling.max_tokens", config.sampling.max_tokens))
    for field, pairs in (("pairs", config.pairs), ("sft.pairs", None if config.sft is None else config.sft.pairs)):
        if pairs is not None:
            limits = (pairs.max_prompt_tokens, pairs.max_completion_tokens)
            lengths.append((f"{field}.max_prompt_tokens", limits[0], f"{field}.max_completion_tokens", limits[1]))
    for name, held_out in config.evaluation.pairs.items():
        of_set, field = evaluation_limits(config, held_out), f"evaluation.pairs.{name}"
        prompt, completion = of_set.max_prompt_tokens, of_set.max_completion_tokens
        lengths.append((f"{field}.max_prompt_tokens", prompt, f"{field}.max_completion_tokens", completion))
    for first, num_first, second, num_second in lengths:
        if model.max_model_len is not None and num_first + num_second > model.max_model_len:
            raise ConfigError(
                f"{first} is {num_first} and {second} is {num_second}, together {num_first + num_second}; the context "
                f"of {config.model.path} is {model.max_model_len} tokens: lower either"
            )
    switch = model.rope_switch
    if config.needs_generators and switch is not None and config.max_model_len > switch:
        raise ConfigError(
            f"the longest prompt and completion are together {config.max_model_len} tokens, and {config.model.path} "
            f"turns its positions in another way beyond {switch} (rope_type longrope): vLLM would do so for every row, "
            f"the learner for longer rows alone; lower prompts.max_tokens or sampling.max_tokens to {switch} together"
        )
    if model.quantised and config.model.quantization is not None:
        raise ConfigError(
            f"model.quantization is {config.model.quantization} and {config.model.path} is quantised already; remove "
            f"model.quantization, or give the model's unquantised weights"
        )
    if model.quantised and config.generator.weight_push == "merge":
        raise ConfigError(
            f"generator.weight_push is merge and {config.model.path} is quantised; merging into quantised weights is "
            f"not exact: remove generator.weight_push, or set it to lora"
        )


def check_machine(config: RunConfig) -> None:
    """Raises ConfigError when an option needs a package that is not installed, or a GPU where there is none, or a
    tracker does not take its options."""
    if config.model.quantization is not None:
        _check_quantization(config)
    make_trackers(config.logging)


def _check_quantization(config: RunConfig) -> None:
    named = f"model.quantization is {config.model.quantization}"
    # Whether a cluster that is joined has GPUs is only known once it was joined, see `specs`.
    if config.cluster.address is None and "RAY_ADDRESS" not in os.environ and not _sees_gpu():
        raise ConfigError(
            f"{named}, which computes on a GPU only, and this machine has none: set model.quantization to null, or "
            f"join a cluster with GPUs"
        )
    needed = {"bitsandbytes": True, "vllm_bnb_plugin": config.needs_generators}  # vLLM 0.28 gave the method away
    missing = [name for name, is_needed in needed.items() if is_needed and find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"{named} and the package {missing[0].replace('_', '-')} is not installed; pip install 'online-dpo[nf4]', "
            f"or set model.quantization to null"
        )


def _sees_gpu() -> bool:
    """Whether there is a GPU of NVIDIA; without torch, whose import takes seconds."""
    return os.environ.get("CUDA_VISIBLE_DEVICES") != "" and shutil.which("nvidia-smi") is not None
