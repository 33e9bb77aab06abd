"""Attention over packed rows: every completion sees its prompt and itself, nothing else.

Registered with transformers under `PACKED`; a model whose attention goes through that registry and hands on its
keyword arguments needs no change. On CPU each block of equal groups is a few dense calls of SDPA, without masked-out
work; on GPU one call of FlexAttention takes the whole batch.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from online_dpo.errors import ModelError
from online_dpo.packing import Block, PackedBatch

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
    return attend_blocks(query, key, value, packing.blocks, scale), None


AttentionInterface.register(PACKED, packed_attention)


def attend_blocks(query: Tensor, key: Tensor, value: Tensor, blocks: tuple[Block, ...], scale: float) -> Tensor:
    """`[1, heads, N, D]` -> `[1, N, heads, D]`, block by block."""
    sizes = [block.num_tokens for block in blocks]
    # Views token by token: `split`, unlike slicing, costs one concatenation in the backward pass.
    parts = [tensor[0].transpose(0, 1).split(sizes) for tensor in (query, key, value)]
    return torch.cat([_attend_block(block, scale, *qkv) for block, *qkv in zip(blocks, *parts, strict=True)])[None]


def _attend_block(block: Block, scale: float, *qkv: Tensor) -> Tensor:
    """`[G * S, heads, D]` each -> the same shape as the query's."""
    shaped = [part.unflatten(0, (block.num_groups, block.group_tokens)).transpose(1, 2) for part in qkv]
    if len(block.completions) < 2:
        return _sdpa(*shaped, scale=scale).transpose(1, 2).flatten(0, 1)
    lengths = [block.prompt, *block.completions]
    (prompt_query, *queries), (prompt_key, *keys), (prompt_value, *values) = (t.split(lengths, dim=2) for t in shaped)
    outputs = [_sdpa(prompt_query, prompt_key, prompt_value, scale=scale)]
    for own_query, own_key, own_value in zip(queries, keys, values, strict=True):
        all_keys, all_values = torch.cat([prompt_key, own_key], dim=2), torch.cat([prompt_value, own_value], dim=2)
        outputs.append(_sdpa(own_query, all_keys, all_values, scale=scale))
    return torch.cat(outputs, dim=2).transpose(1, 2).flatten(0, 1)


def _sdpa(query: Tensor, key: Tensor, value: Tensor, *, scale: float) -> Tensor:
    """Causal attention; queries are the last ones of the keys' positions."""
    num_queries, num_keys = query.shape[2], key.shape[2]
    mask = None if num_queries == num_keys else causal_mask(num_queries, num_keys, query.dtype, query.device)
    return scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=mask is None, scale=scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )  # fmt: skip


def causal_mask(num_queries: int, num_keys: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """`[num_queries, num_keys]` of 0 and -inf: query i sees the keys up to `num_keys - num_queries + i`."""
    whole = _triangle(2 ** math.ceil(math.log2(max(num_keys, 2))), dtype, device)
    return whole[num_keys - num_queries : num_keys, :num_keys]


@cache
def _triangle(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    seen = torch.ones(size, size, dtype=torch.bool, device=device).tril()
    return torch.zeros(size, size, dtype=dtype, device=device).masked_fill_(~seen, -torch.inf)


def _by_flex(query: Tensor, key: Tensor, value: Tensor, packing: PackedBatch, scale: float) -> Tensor:
    grouped = query.shape[1] != key.shape[1]
    output = _compiled_flex()(query, key, value, block_mask=packing.block_mask, scale=scale, enable_gqa=grouped)
    return output.transpose(1, 2)


@cache
def _compiled_flex() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True)
