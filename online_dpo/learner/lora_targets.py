"""Which layers of a model get LoRA: named one by one before PEFT sees them, and looked at afterwards.

PEFT's own `all-linear` also adapts fused expert tensors and routers of mixture-of-experts models
(`target_parameters`), which can be pushed to no generator.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peft import PeftModel, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers.pytorch_utils import Conv1D

from online_dpo.errors import ModelError
from online_dpo.learner.logprobs import base_model
from online_dpo.models.adapters import check_base, lora_layers
from online_dpo.models.model_files import of_expert

_LINEAR = (nn.Linear, Conv1D)


def all_linear(model: Any) -> list[str]:
    """The linear layers that `learner.lora.targets: all-linear` means, by full name, sorted.

    That is every linear layer but the head. In a mixture of experts it is those of attention alone: experts are fused
    into tensors, and PEFT takes other names, such as `down_proj` of a shared expert, for theirs.

    Args:
        model: of transformers, without LoRA.

    Raises:
        ModelError: there is none.
    """
    head, decoder = model.get_output_embeddings(), set(model.get_decoder().modules())  # without encoders of images
    names = [n for n, m in model.named_modules() if isinstance(m, _LINEAR) and m is not head and m in decoder]
    if expert_tensors(model):
        names = [name for name in names if "attn" in name or "attention" in name]
    if not names:
        raise ModelError(
            f"learner.lora.targets is all-linear and {type(model).__name__} has no linear layers that LoRA could be "
            f"put on; name some in learner.lora.targets, or choose another model"
        )
    return sorted(names)


def expert_tensors(model: nn.Module) -> list[str]:
    """Names of the tensors that hold the matrices of experts."""
    return sorted(name for name, _ in model.named_parameters() if of_expert(name))


def check_targets(model: PeftModel, adapter_name: str, targets: str | list[str]) -> None:
    """Refuse what PEFT made of the targets if it could not be pushed to the generators.

    Args:
        model: with its LoRA.
        adapter_name: of the trained slot.
        targets: as the config has them, or the adapter that is continued.

    Raises:
        ModelError: LoRA is on something else than linear layers, or on layers of both layouts.
    """
    kind = type(base_model(model)).__name__
    config: Any = model.peft_config[adapter_name]
    adapted = _adapted(model, adapter_name)
    beyond = sorted(config.target_parameters or ()) or [
        name for name, module in adapted.items() if not isinstance(module.get_base_layer(), _LINEAR)
    ]
    if beyond:
        raise ModelError(
            f"learner.lora.targets is {targets}, which in {kind} means {', '.join(beyond[:3])}; these are no linear "
            f"layers, and only LoRA of linear layers can be pushed to the generators: name linear layers such as "
            f"those of attention, or use all-linear"
        )
    if len({isinstance(module.get_base_layer(), Conv1D) for module in adapted.values()}) > 1:
        raise ModelError(
            f"learner.lora.targets is {targets}, which in {kind} means linear layers of both layouts, and an adapter "
            f"has one setting for both (fan_in_fan_out); name layers of one layout in learner.lora.targets"
        )


def check_stored(model: PeftModel, adapter_name: str, weight_files: Sequence[Path]) -> None:
    """Refuse LoRA on a layer that the base model's files do not hold, since updates are merged into what they hold.

    transformers renames and fuses tensors as it loads some models, so layers need not be what the files have.

    Args:
        model: with its LoRA; it may be without content.
        adapter_name: of the trained slot.
        weight_files: of the base model.

    Raises:
        ModelError: a layer is not there, has another shape, or is an expert's.
    """
    label = f"LoRA is on linear layers of {type(base_model(model)).__name__}"
    state = get_peft_model_state_dict(model, adapter_name=adapter_name, save_embedding_layers=False)
    config: Any = model.peft_config[adapter_name]
    layers = lora_layers({name: tuple(tensor.shape) for name, tensor in state.items()}, config.r, label)
    remedy = "an update could not be merged there: name layers in learner.lora.targets that its files hold"
    check_base(layers, weight_files, label, remedy=remedy)


def notice(model: PeftModel, adapter_name: str) -> str | None:
    """A line for people where `all-linear` leaves out what they may expect to be trained; None elsewhere."""
    base = base_model(model)
    experts = expert_tensors(base)
    if not experts:
        return None
    adapted = sorted({name.split(".")[-1] for name in _adapted(model, adapter_name)})
    return (
        f"LoRA is on {', '.join(adapted)} of every layer and leaves the experts of {type(base).__name__} as they are "
        f"({experts[0]} and {len(experts) - 1} more tensors)"
    )


def _adapted(model: PeftModel, adapter_name: str) -> dict[str, LoraLayer]:
    """Layer name, as the base model has it -> the layer with its LoRA."""
    return {
        name: module
        for name, module in base_model(model).named_modules()
        if isinstance(module, LoraLayer) and (adapter_name in module.lora_A or adapter_name in module.lora_embedding_A)
    }
