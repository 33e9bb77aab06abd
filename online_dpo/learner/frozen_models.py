"""Loads the frozen models of a learner: the policy's base, and a reference that is another model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch

from online_dpo.learner.logprobs import verify_attention, verify_head
from online_dpo.models.loading import check_finite, load_weights, nf4_options, read_config


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSource:
    """Where a model lies, and what the config calls it."""

    field: str  # of the config
    name: str  # that the field has
    folder: str  # on this machine
    trust_remote_code: bool


def load_model(
    source: ModelSource,
    *,
    dtype: Literal["float32", "bfloat16"],
    device: torch.device,
    quantization: Literal["nf4"] | None = None,
) -> Any:
    """A frozen model in eval mode, whose head and attention are known to be computed as they should.

    Raises:
        ModelError: it does not load, a weight is missing or no number, its head is unknown, or its attention drops
            something.
    """
    label = f"{source.field} is {source.name}"
    config = read_config(source.folder, label=label, trust_remote_code=source.trust_remote_code)
    model = load_weights(
        source.folder,
        config,
        label=label,
        dtype=getattr(torch, dtype),
        trust_remote_code=source.trust_remote_code,
        **(nf4_options(device) if quantization == "nf4" else {}),
    )
    model = model.to(device).requires_grad_(False).eval()
    check_finite(model.state_dict().items(), label=label)
    verify_head(model)
    verify_attention(model)
    return model
