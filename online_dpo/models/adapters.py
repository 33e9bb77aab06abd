"""LoRA adapters that the config names: which are plain LoRA, and whether they fit their base model.

An adapter is refused unless its whole effect is `scale * B A` on linear layers of the base model as its files hold it:
nothing else can be pushed to the generators faithfully.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from online_dpo.config.learner import LORA_RANKS
from online_dpo.errors import ModelError
from online_dpo.models import model_files
from online_dpo.models.inspection import ModelInfo
from online_dpo.models.locating import ADAPTER_FILES, HUB_ID, locate
from online_dpo.types import Adapter

_BEYOND_PLAIN_LORA = (
    "use_dora", "lora_bias", "modules_to_save", "rank_pattern", "alpha_pattern", "trainable_token_indices",
    "target_parameters", "layer_replication", "alora_invocation_tokens", "use_qalora", "use_bdlora", "arrow_config",
    "kasa_config", "velora_config", "monteclora_config",
)  # fmt: skip
"""PEFT options with which the update is no longer one `alpha / r * B A` per layer that engine and push agree on."""

_BASE_PRESERVING_INITS = (True, False, "gaussian", "eva", "orthogonal", "mica")
"""Ways of initialising LoRA under which PEFT leaves the base weights alone.

The others (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA) change the base weights when an adapter is created, so that it belongs
to weights which no file of the base model holds: LoRA-GA subtracts `scale * B A` (`lora_ga_init` in PEFT's
tuners/lora/layer.py). PEFT's save_pretrained can convert such an adapter to plain LoRA
(`path_initial_model_for_weight_conversion`); the config that it then writes has `init_lora_weights: true`.
"""

Shapes: TypeAlias = Mapping[str, tuple[int, ...]]
"""Tensor name -> shape."""

Layers: TypeAlias = dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
"""Layer name -> shapes of its A `[r, in]` and B `[out, r]`."""


def read_adapter(path: str, *, base: ModelInfo | None, field: str = "model.adapter") -> Adapter:
    """A LoRA adapter that a run continues, as version 0.

    Its config travels with sorted targets and without a machine's path to the base model, so that the same adapter has
    the same digest wherever it lies.

    Args:
        path: `embedded:NAME`, a PEFT folder or a hub id.
        base: the model it is for; tensor names and shapes are compared unless it is None or quantised.
        field: the config field that holds `path`, for errors.

    Raises:
        ModelError: not a plain LoRA on linear layers in safetensors, or made for another model.
    """
    label = f"{field} is {path}"
    folder = locate(path, field=field, adapter=True)
    for name in ADAPTER_FILES:
        if not (folder / name).is_file():
            pickled = name.endswith(".safetensors") and (folder / "adapter_model.bin").is_file()
            hint = (
                "adapter_model.bin is pickled, and nothing is ever unpickled here: load it with PEFT and save it again"
                if pickled
                else "give a folder that PEFT's save_pretrained wrote"
            )
            raise ModelError(f"{label}, which has no {name}; {hint}")
    model_files.refuse_pointers(folder, label)
    config = model_files.read_json(folder / "adapter_config.json", label)
    check_plain_lora(config, label)
    modules = lora_layers(model_files.tensor_shapes(folder / "adapter_model.safetensors", label), config["r"], label)
    if base is not None and not base.quantised:
        remedy = f"give the adapter's own base model as model.path, which is {base.folder.name}"
        check_base(modules, base.weight_files, label, remedy=remedy)
    if isinstance(config.get("target_modules"), list):
        config["target_modules"] = sorted(config["target_modules"])
    if not HUB_ID.fullmatch(str(config.get("base_model_name_or_path"))):
        config["base_model_name_or_path"] = None
    return Adapter(
        version=0,
        weights=(folder / "adapter_model.safetensors").read_bytes(),
        config=json.dumps(config, indent=2, sort_keys=True).encode(),
    )


def check_plain_lora(config: Mapping[str, Any], label: str) -> None:
    """Refuse a PEFT config that the generators could not be given faithfully.

    Args:
        config: the content of adapter_config.json.
        label: the start of errors, such as `model.adapter is adapters/sft`.

    Raises:
        ModelError: it is not plain LoRA, or its rank is one that vLLM does not take.
    """
    remedy = "merge it into the model (PEFT's merge_and_unload, then save_pretrained) and start a new LoRA on that"
    if config.get("peft_type") != "LORA":
        raise ModelError(f"{label}, whose peft_type is {config.get('peft_type')}; only LoRA can be pushed: {remedy}")
    beyond = [name for name in _BEYOND_PLAIN_LORA if config.get(name)]
    beyond += ["bias"] if config.get("bias", "none") not in (None, "none") else []
    beyond += [] if config.get("init_lora_weights", True) in _BASE_PRESERVING_INITS else ["init_lora_weights"]
    if beyond:
        found = ", ".join(f"{name}: {json.dumps(config[name])}" for name in beyond)
        raise ModelError(f"{label}, which has {found}; only plain LoRA can be pushed to the generators: {remedy}")
    rank = config.get("r")
    if not isinstance(rank, int) or not 1 <= rank <= max(LORA_RANKS):
        raise ModelError(f"{label}, whose rank r is {rank}; vLLM takes 1 to {max(LORA_RANKS)}: {remedy}")


def lora_layers(shapes: Shapes, rank: int, label: str) -> Layers:
    """The layers that an adapter changes: layer name -> shapes of its A `[r, in]` and B `[out, r]`.

    Args:
        shapes: of all its tensors.
        rank: `r` of its config.
        label: the start of errors.

    Raises:
        ModelError: a tensor is not a LoRA matrix of a linear layer, or not of this rank.
    """
    sides: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        module, _, part = name.removeprefix("base_model.model.").rpartition(".lora_")
        # Pushed copies of embeddings and heads go stale: the engine ties or packs them (DESIGN section 8).
        if part not in ("A.weight", "B.weight") or len(shape) != 2 or module.split(".")[-1] == "lm_head":
            raise ModelError(
                f"{label}, which has the tensor {name}; only LoRA of linear layers other than lm_head can be pushed to "
                f"the generators: merge it into the model and start a new LoRA on that"
            )
        sides.setdefault(module, {})[part[0]] = shape
    for module, found in sides.items():
        if found.keys() != {"A", "B"} or found["A"][0] != rank or found["B"][1] != rank:
            raise ModelError(
                f"{label}, whose matrices of {module} have shapes {found}, which is no LoRA of rank {rank}; save the "
                f"adapter again with PEFT's save_pretrained"
            )
    if not sides:
        raise ModelError(f"{label}, which has no weights; give an adapter that was trained, or set model.adapter: null")
    return {module: (found["A"], found["B"]) for module, found in sides.items()}


def check_base(layers: Layers, weight_files: Sequence[Path], label: str, *, remedy: str) -> None:
    """Refuse an adapter with a layer that a model's files do not hold: it could not be merged into them.

    Args:
        layers: from `lora_layers`.
        weight_files: of the model.
        label: the start of errors.
        remedy: their end.

    Raises:
        ModelError: a layer is not there, has another shape, or is an expert's.
    """
    stored = {name: shape for file in weight_files for name, shape in model_files.tensor_shapes(file, label).items()}
    names = model_files.weight_names(layers, stored)
    for layer, (a, b) in layers.items():
        if model_files.of_expert(f"{layer}.weight"):
            raise ModelError(
                f"{label}, whose layer {layer} is one of a mixture's experts; these are not pushed: {remedy}"
            )
        found = stored[names[layer]] if layer in names else None
        # Sorted, since GPT-2's Conv1D keeps its weight transposed.
        if found is None or sorted((b[0], a[1])) != sorted(found):
            actual = "the model has no such layer" if found is None else f"the model's is {found}"
            raise ModelError(f"{label}, whose layer {layer} maps {a[1]} to {b[0]} features, but {actual}; {remedy}")
