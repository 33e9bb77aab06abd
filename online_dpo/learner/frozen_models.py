"""Loads the frozen models of a learner: the policy's base, and a reference that is another model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from online_dpo.errors import ModelError, first_line
from online_dpo.learner.logprobs import verify_head
from online_dpo.models.attention import implementation_for


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSource:
    """Where a model lies, and what the config calls it."""

    field: str  # of the config
    name: str  # that the field has
    folder: str  # on this machine
    trust_remote_code: bool


def load_model(source: ModelSource, *, dtype: Literal["float32", "bfloat16"], device: torch.device) -> Any:
    """A frozen model in eval mode, whose head is one that is known.

    Raises:
        ModelError: it does not load, or its head is unknown.
    """
    try:
        config = AutoConfig.from_pretrained(source.folder, trust_remote_code=source.trust_remote_code)
        model: Any = AutoModelForCausalLM.from_pretrained(
            source.folder,
            config=config,
            dtype=getattr(torch, dtype),
            trust_remote_code=source.trust_remote_code,
            attn_implementation=implementation_for(config),
        )
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{source.field} {source.name} does not load as a causal language model: {first_line(error)}; give a "
            f"folder with config.json and safetensors weights, or a hub id"
        ) from None
    model = model.to(device).requires_grad_(False).eval()
    verify_head(model)
    return model
