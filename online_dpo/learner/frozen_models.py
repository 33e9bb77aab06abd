"""Loads and verifies the frozen models of a learner: the policy's base, and a reference that is another model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from online_dpo.errors import ModelError
from online_dpo.learner.logprobs import Head, base_model, final_hidden
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
    options = nf4_options() if quantization == "nf4" else {}
    if device.type != "cpu":
        options["device_map"] = {"": device}  # weights go there one by one
    model = load_weights(
        source.folder,
        config,
        label=label,
        dtype=getattr(torch, dtype),
        trust_remote_code=source.trust_remote_code,
        **options,
    )
    model = model.requires_grad_(False).eval()
    check_finite(model.state_dict().items(), label=label)
    verify_head(model)
    verify_attention(model)
    return model


@torch.no_grad()
def verify_head(model: nn.Module) -> None:
    """Compare the logits of `Head` with the model's own on a few tokens.

    Architectures keep inventing ways to transform logits. A model whose way `Head` does not know must not be trained.

    Raises:
        ModelError: they differ.
    """
    base, head = base_model(model), Head.of(model)
    rows = _probe_tokens(head)
    expected = base(input_ids=rows, use_cache=False).logits.double().log_softmax(dim=-1)
    found = head.logits(final_hidden(model, input_ids=rows))[0].double().log_softmax(dim=-1)
    # Relative to the spread of the log-probs, since a freshly initialised model has nearly flat ones.
    distance = ((found - expected).abs().max() / (expected.max() - expected.min())).item()
    bound = 0.05 if head.weight.dtype == torch.bfloat16 else 1e-4
    if not distance <= bound:
        raise ModelError(
            f"{type(base).__name__} transforms its logits in a way that is not known here (relative difference "
            f"{distance:.2g}); known are a linear head, logit_scale, logits_scaling and "
            f"final_logit_softcapping: choose another model"
        )


@torch.no_grad()
def verify_attention(model: nn.Module) -> None:
    """Compare a model's log-probs with its own under eager attention on a few tokens.

    Eager attention is where transformers writes out all that a model does to its scores; faster kernels drop what they
    do not know. The median over tokens is taken, since in bfloat16 a mixture sends single tokens to other experts.
    Rounding hides a weak cap there: what is known to be dropped is read from the config (`models.attention`).

    Raises:
        ModelError: they differ.
    """
    base, head = base_model(model), Head.of(model)
    config = base.get_decoder().config  # the one that its attention layers look at
    chosen = config._attn_implementation
    if chosen == "eager":
        return
    found = base(input_ids=_probe_tokens(head), use_cache=False).logits.double().log_softmax(dim=-1)
    config._attn_implementation = "eager"
    try:
        expected = base(input_ids=_probe_tokens(head), use_cache=False).logits.double().log_softmax(dim=-1)
    finally:
        config._attn_implementation = chosen
    distances = (found - expected).abs().amax(dim=-1) / (expected.max() - expected.min())
    distance = distances.median().item()
    if not distance <= (0.05 if head.weight.dtype == torch.bfloat16 else 2e-5):
        raise ModelError(
            f"{type(base).__name__} asks for attention that its implementation ({chosen}) does not apply (relative "
            f"difference {distance:.2g}); known is attn_logit_softcapping: choose another model"
        )


def _probe_tokens(head: Head) -> Tensor:
    """`[2, 8]` token ids, spread over the vocabulary."""
    return 1 + torch.arange(16, device=head.weight.device).reshape(2, 8) * 7919 % (head.weight.shape[0] - 1)
