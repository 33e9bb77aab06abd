"""What engines and the learner are made of, given a run's inputs."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from online_dpo.commands.inputs import Materials
from online_dpo.config.control import PathReference
from online_dpo.config.learner import LoraSection
from online_dpo.models.given_reference import FIELD as REFERENCE_FIELD
from online_dpo.models.inspection import ModelInfo
from online_dpo.models.model_files import tensor_shapes

MAX_NUM_SEQS = 256
"""Sequences that an engine decodes at once, at most; more only cost memory on the machines this was measured on."""


def engine_spec(materials: Materials) -> Any:
    """The engine of every generator."""
    from actors.generator import EngineSpec
    from actors.session import has_gpus

    config, generator = materials.config, materials.config.generator
    lora = config.learner.lora or LoraSection()
    rank, targets = lora.r, lora.targets
    if materials.adapter is not None:
        adapter = json.loads(materials.adapter.config)
        rank, targets = int(adapter["r"]), adapter["target_modules"]
    return EngineSpec(
        model_folder=str(materials.model.folder),
        trust_remote_code=config.model.trust_remote_code,
        dtype=config.model.dtype,
        max_model_len=config.max_model_len,
        max_num_seqs=min(MAX_NUM_SEQS, generator.shard_prompts * config.sampling.num_samples),
        weight_push="lora" if materials.model.quantised else config.weight_push,
        lora_rank=rank,
        lora_targets=linear_layers(materials.model) if isinstance(targets, str) else _last_names(targets),
        tensor_parallel=generator.tensor_parallel,
        eos_token_ids=materials.model.eos_token_ids,
        gpu_memory_utilization=generator.gpu_memory_utilization,
        block_size=generator.block_size,
        enforce_eager=not has_gpus() if generator.enforce_eager == "auto" else generator.enforce_eager,
        seed=0,  # every request has its own seed
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
        if not any(part in name for part in ("embed", ".experts."))
        and not name.endswith(("lm_head", "wte", "wpe", "mlp.gate", "block_sparse_moe.gate"))
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
