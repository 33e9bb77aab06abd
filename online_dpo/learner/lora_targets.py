"""Which layers of a model get LoRA: named one by one before PEFT sees them, and looked at afterwards.

PEFT's own `all-linear` also adapts fused expert tensors and routers of mixture-of-experts models
(`target_parameters`), which can be pushed to no generator.
"""

from __future__ import annotations

from typing import Any

from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers.pytorch_utils import Conv1D

from online_dpo.errors import ModelError
from online_dpo.learner.logprobs import base_model

_LINEAR = (nn.Linear, Conv1D)


def all_linear(model: Any) -> list[str]:
    """The linear layers that `learner.lora.targets: all-linear` means, by full name, sorted.

    That is every linear layer but the head. Where experts are fused into tensors, which are no layers, it is those of
    attention alone: PEFT takes other names, such as `down_proj` of a shared expert, for the experts.

    Args:
        model: of transformers, without LoRA.

    Raises:
        ModelError: there is none.
    """
    head = model.get_output_embeddings()
    names = [name for name, module in model.named_modules() if isinstance(module, _LINEAR) and module is not head]
    if fused_experts(model):
        names = [name for name in names if "attn" in name or "attention" in name]
    if not names:
        raise ModelError(
            f"learner.lora.targets is all-linear and {type(model).__name__} has no linear layers that LoRA could be "
            f"put on; name some in learner.lora.targets, or choose another model"
        )
    return sorted(names)


def fused_experts(model: nn.Module) -> list[str]:
    """Names of the tensors that hold the matrices of several experts."""
    return sorted(name for name, tensor in model.named_parameters() if tensor.ndim == 3 and "expert" in name)


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


def notice(model: PeftModel, adapter_name: str) -> str | None:
    """A line for people where `all-linear` leaves out what they may expect to be trained; None elsewhere."""
    base = base_model(model)
    fused = fused_experts(base)
    if not fused:
        return None
    adapted = sorted({name.split(".")[-1] for name in _adapted(model, adapter_name)})
    return (
        f"LoRA is on {', '.join(adapted)} of every layer and leaves the experts of {type(base).__name__} as they "
        f"are: they are fused tensors such as {fused[0]}, not linear layers"
    )


def _adapted(model: PeftModel, adapter_name: str) -> dict[str, LoraLayer]:
    """Layer name, as the base model has it -> the layer with its LoRA."""
    return {
        name: module
        for name, module in base_model(model).named_modules()
        if isinstance(module, LoraLayer) and (adapter_name in module.lora_A or adapter_name in module.lora_embedding_A)
    }
