"""What engines and the learner are made of, given a run's inputs."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from online_dpo.commands.preparing.inputs import Materials
from online_dpo.commands.preparing.writers import engine_tokens
from online_dpo.config.control import PathReference
from online_dpo.config.learner import LoraSection
from online_dpo.errors import ConfigError
from online_dpo.models.given_reference import FIELD as REFERENCE_FIELD
from online_dpo.models.inspection import ModelInfo
from online_dpo.models.model_files import of_expert, read_json, tensor_shapes

MAX_NUM_SEQS = 256
"""Sequences that an engine decodes at once, at most; more only cost memory on the machines this was measured on."""


def engine_spec(materials: Materials) -> Any:
    """The engine of every generator.

    Raises:
        ConfigError: vLLM is known not to run this model on CPU.
    """
    from actors.generator import EngineSpec
    from actors.session import has_gpus

    config, generator = materials.config, materials.config.generator
    lora = config.learner.lora or LoraSection()
    rank, targets = lora.r, lora.targets
    if materials.adapter is not None:
        adapter = json.loads(materials.adapter.config)
        rank, targets = int(adapter["r"]), adapter["target_modules"]
    weight_push, quantization = generator.weight_push, config.model.quantization
    if weight_push == "auto":
        weight_push = "lora" if materials.model.quantised or quantization is not None else "merge"
    if not has_gpus():
        if quantization is not None:
            raise ConfigError(
                f"model.quantization is {quantization}, which computes on a GPU only, and the cluster has none: set it "
                f"to null, or add a node with a GPU"
            )
        check_cpu_engine(materials.model, config.model.path, weight_push)
    return EngineSpec(
        model_folder=str(materials.model.folder),
        trust_remote_code=config.model.trust_remote_code,
        dtype=config.engine_dtype,
        max_model_len=engine_tokens(config, materials.model),
        max_num_seqs=min(MAX_NUM_SEQS, generator.shard_prompts * config.sampling.num_samples),
        weight_push=weight_push,
        lora_rank=rank,
        lora_targets=linear_layers(materials.model) if isinstance(targets, str) else _last_names(targets),
        tensor_parallel=generator.tensor_parallel,
        eos_token_ids=materials.model.eos_token_ids,
        gpu_memory_utilization=generator.gpu_memory_utilization,
        block_size=generator.block_size,
        enforce_eager=not has_gpus() if generator.enforce_eager == "auto" else generator.enforce_eager,
        seed=0,  # every request has its own seed
        sleeps=config.layout == "colocated",
        quantization=quantization,
        keeps_special_tokens=materials.job.keeps_special_tokens,
    )


def check_cpu_engine(model: ModelInfo, path: str, weight_push: str) -> None:
    """Refuse what vLLM 0.32 cannot do on CPU, where it would end in an error of its kernels.

    Args:
        model: the policy's base.
        path: that the config has.
        weight_push: merge or lora.

    Raises:
        ConfigError: latent attention, state-space layers, or adapters served beside a mixture of experts.
    """
    config = read_json(model.folder / "config.json", "model.path")
    label = f"model.path is {path}, which is {model.model_type}"
    if config.get("kv_lora_rank"):
        raise ConfigError(
            f"{label}, a model with latent attention (MLA), and vLLM runs it on GPU only: choose another "
            f"model, or a cluster with GPUs"
        )
    if any(key in config for key in ("state_size", "mamba_d_state", "ssm_state_size", "linear_key_head_dim")):
        raise ConfigError(
            f"{label}, a model with state-space or linear-attention layers, and vLLM runs it on GPU only: choose a "
            f"model with attention alone, or a cluster with GPUs"
        )
    experts = any(of_expert(name) for file in model.weight_files for name in tensor_shapes(file, "model.path"))
    if weight_push == "lora" and experts:
        raise ConfigError(
            f"generator.weight_push is lora and {path} is a mixture of experts, which vLLM serves with adapters on GPU "
            f"only: set generator.weight_push to merge"
        )


def linear_layers(model: ModelInfo) -> tuple[str, ...]:
    """Last names of the layers that `all-linear` may mean: those with a matrix; embeddings, head and experts aside."""
    matrices = {
        name.removesuffix(".weight")
        for file in model.weight_files
        for name, shape in tensor_shapes(file, "model.path").items()
        if len(shape) == 2 and name.endswith(".weight")
    }
    return _last_names(
        name
        for name in matrices
        if "embed" not in name
        and not of_expert(f"{name}.weight")
        and not name.endswith(("lm_head", "wte", "wpe", "mlp.gate", "block_sparse_moe.gate", "router.layer"))
    )


def _last_names(modules: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted({name.split(".")[-1] for name in modules}))


def learner_spec(materials: Materials) -> Any:
    """The learner's making."""
    from online_dpo.learner.learner import LearnerSpec

    config = materials.config
    return LearnerSpec(
        model_folder=str(materials.model.folder),
        model_name=config.model.path,
        dtype=config.model.dtype,
        engine_dtype=config.engine_dtype,
        quantization=config.model.quantization,
        trust_remote_code=config.model.trust_remote_code,
        lora=config.learner.lora,
        adapter=materials.adapter,
        learner=config.learner,
        objective=config.objective,
        seed=config.run.seed,
        rounds=config.run.rounds,
        threads=config.learner.threads if isinstance(config.learner.threads, int) else None,
        reference=_reference_source(materials),
    )


def _reference_source(materials: Materials) -> Any:
    from online_dpo.learner.frozen_models import ModelSource

    section, found = materials.config.reference, materials.reference
    if not isinstance(section, PathReference) or not isinstance(found, ModelInfo):
        return found
    return ModelSource(
        field=REFERENCE_FIELD,
        name=section.path,
        folder=str(found.folder),
        trust_remote_code=section.trust_remote_code,
    )
