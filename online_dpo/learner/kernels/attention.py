"""Attention over packed rows: every completion sees its prompt and itself, nothing else.

Registered with transformers under `PACKED`; a model whose attention goes through that registry and hands on its
keyword arguments needs no change. On CPU `block_attention` takes it block by block; on GPU one call of FlexAttention
takes the whole batch.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from online_dpo.errors import ModelError
from online_dpo.learner.kernels.block_attention import attend_blocks
from online_dpo.learner.kernels.packing import PackedBatch

PACKED = "online_dpo_packed"

_HARMLESS = {"position_ids", "use_cache", "cache_position", "output_attentions", "output_hidden_states", "is_causal"}
"""Keyword arguments of attention that change nothing here; any other means attention of a kind not known here."""


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packing: PackedBatch | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers calls it.

    Args:
        query: `[1, heads, N, D]`.
        key: `[1, key heads, N, D]`; `value` likewise.
        packing: what belongs together; it comes through the model's keyword arguments.
        scaling: of the scores; None = `D ** -0.5`.

    Returns:
        `[1, N, heads, D]`, and None for the attention weights.

    Raises:
        ModelError: this model's attention wants something that is not known here (a window, a soft cap, sinks).
    """
    unknown = sorted(name for name, option in options.items() if name not in _HARMLESS and option is not None)
    if packing is None or attention_mask is not None or dropout or unknown:
        what = "no packing" if packing is None else ", ".join(unknown) or "a mask or dropout"
        raise ModelError(f"the attention of {type(module).__name__} asks for {what}; choose learner.layout: separate")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if value.dtype != query.dtype:
        # Products in bfloat16 leave values as they are, and rotation makes queries and keys float32. Attention in
        # bfloat16 is what GPUs are fast at; on CPU it is slower than float32.
        dtype = value.dtype if value.is_cuda else query.dtype
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    if query.is_cuda:
        return _by_flex(query, key, value, packing, scale), None
    query, key, value = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    return attend_blocks(query, key, value, packing.blocks, scale)[None], None


AttentionInterface.register(PACKED, packed_attention)


def leave_uncompiled() -> None:
    """Keep the compiler out of attention from now on: it would compile anew for every layout."""
    AttentionInterface.register(PACKED, torch.compiler.disable(packed_attention))


_ONE_KERNEL = {"BACKEND": "TRITON"}
"""Under 128 tokens FlexAttention would take its kernel for decoding, which fails where four heads share a key."""


def _by_flex(query: Tensor, key: Tensor, value: Tensor, packing: PackedBatch, scale: float) -> Tensor:
    grouped = query.shape[1] != key.shape[1]
    output = _compiled_flex()(
        query, key, value, block_mask=packing.block_mask, scale=scale, enable_gqa=grouped, kernel_options=_ONE_KERNEL
    )
    return output.transpose(1, 2)


@cache
def _compiled_flex() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True)
