"""Attention over blocks of equal groups as dense matrix products: what the CPU is good at.

At the lengths of preference pairs, SDPA on CPU is mostly slower than these products (docs/performance.md).
What a completion sees is gathered side by side, so apart from the triangles on the diagonal nothing masked is
computed; the work is cut into tiles that stay in the cache, and the weights of attention are computed again in the
backward pass, tile by tile, so that only queries, keys and values are kept.

Shapes: `N` tokens of the batch, `G` groups of a tile, `S` tokens of a group, `K` key heads, `R` query heads that share
a key head, `D` size of a head, `W` queries of a piece, `E` keys that they see.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from online_dpo.learner.kernels.packing import Block

TILE_ELEMENTS = 2**18
"""Attention weights computed at a time, 1 MiB in float32; a tile holds at least one group."""

PIECE_QUERIES = 128
"""Longer segments are cut, so that little is computed above the diagonal."""


def attend_blocks(query: Tensor, key: Tensor, value: Tensor, blocks: tuple[Block, ...], scale: float) -> Tensor:
    """Every completion attends to its prompt and to itself, every prompt to itself.

    Args:
        query: `[N, K * R, D]`.
        key: `[N, K, D]`; `value` likewise.
        blocks: of the batch, in order.
        scale: of the scores.

    Returns:
        `[N, K * R, D]`.
    """
    return _BlockAttention.apply(query, key, value, blocks, scale)


class _BlockAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, blocks: tuple[Block, ...], scale: float) -> Tensor:
        output = query.new_empty(query.shape)
        for tile in _tiles(blocks, query.shape[1]):
            rows, out = (tile.queries(tensor, key.shape[1]) for tensor in (query, output))
            keys, values = tile.keys(key), tile.keys(value)
            for piece in tile.pieces:
                weights = piece.weights(piece.take_queries(rows), piece.take_keys(keys), scale)
                piece.put_queries(out, weights @ piece.take_keys(values))
        ctx.save_for_backward(query, key, value)
        ctx.blocks, ctx.scale = blocks, scale
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value = ctx.saved_tensors
        grads = [tensor.new_empty(tensor.shape) for tensor in (query, key, value)]
        for tile in _tiles(ctx.blocks, query.shape[1]):
            rows, rows_up, rows_grad = (tile.queries(t, key.shape[1]) for t in (query, upstream, grads[0]))
            keys, values = tile.keys(key), tile.keys(value)
            keys_grad, values_grad = torch.zeros_like(keys), torch.zeros_like(values)
            for piece in tile.pieces:
                queries, up, seen = piece.take_queries(rows), piece.take_queries(rows_up), piece.take_keys(keys)
                weights = piece.weights(queries, seen, ctx.scale)
                piece.add_keys(values_grad, weights.transpose(1, 2) @ up)
                into_weights = up @ piece.take_keys(values).transpose(1, 2)
                scores = torch._softmax_backward_data(into_weights, weights, -1, weights.dtype).mul_(ctx.scale)
                piece.put_queries(rows_grad, scores @ seen)
                piece.add_keys(keys_grad, scores.transpose(1, 2) @ queries)
            tile.put_keys(grads[1], keys_grad)
            tile.put_keys(grads[2], values_grad)
        return *grads, None, None


@dataclass(frozen=True, slots=True)
class _Piece:
    """Neighbouring queries of one segment of each group, and the keys that they see."""

    start: int  # of the queries, in tokens of the group
    stop: int
    shared: int  # all of them see so many keys at the group's start: a completion its prompt's, a prompt none
    own: int  # start of their segment, of which each sees the keys up to itself

    def take_queries(self, rows: Tensor) -> Tensor:
        """`[G, S, K, R, D]` -> `[G * K, R * W, D]`."""
        groups, _, heads, repeats, size = rows.shape
        taken = rows[:, self.start : self.stop].permute(0, 2, 3, 1, 4)
        return taken.reshape(groups * heads, repeats * (self.stop - self.start), size)

    def put_queries(self, rows: Tensor, taken: Tensor) -> None:
        """The reverse of `take_queries`."""
        groups, _, heads, repeats, size = rows.shape
        shaped = taken.view(groups, heads, repeats, self.stop - self.start, size)
        rows[:, self.start : self.stop] = shaped.permute(0, 3, 1, 2, 4)

    def take_keys(self, keys: Tensor) -> Tensor:
        """`[G * K, S, D]` -> `[G * K, E, D]`."""
        if self.shared == self.own:
            return keys[:, : self.stop]
        return torch.cat([keys[:, : self.shared], keys[:, self.own : self.stop]], dim=1)

    def add_keys(self, keys: Tensor, taken: Tensor) -> None:
        """The reverse of `take_keys`; what several pieces see adds up."""
        if self.shared == self.own:
            keys[:, : self.stop] += taken
        else:
            keys[:, : self.shared] += taken[:, : self.shared]
            keys[:, self.own : self.stop] += taken[:, self.shared :]

    def weights(self, queries: Tensor, keys: Tensor, scale: float) -> Tensor:
        """`[G * K, R * W, E]`, rows sum to one."""
        batch, width = queries.shape[0], self.stop - self.start
        scores = queries.new_empty(())  # with beta 0 what is in it does not count
        scores = torch.baddbmm(scores, queries, keys.transpose(1, 2), beta=0, alpha=scale)
        # Queries are the last of the keys' tokens: only that square has anything to hide.
        scores.view(batch, -1, width, keys.shape[1])[..., -width:] += _triangle(width, scores.dtype)
        return scores.softmax(dim=-1)


@dataclass(frozen=True, slots=True)
class _Tile:
    """Some neighbouring groups of a block."""

    start: int  # in tokens of the batch
    num_groups: int
    group_tokens: int
    pieces: tuple[_Piece, ...]

    def _view(self, tensor: Tensor) -> Tensor:
        """`[N, heads, D]` -> `[G, S, heads, D]`."""
        part = tensor[self.start : self.start + self.num_groups * self.group_tokens]
        return part.unflatten(0, (self.num_groups, self.group_tokens))

    def queries(self, tensor: Tensor, key_heads: int) -> Tensor:
        """`[N, K * R, D]` -> `[G, S, K, R, D]`, a view."""
        return self._view(tensor).unflatten(2, (key_heads, -1))

    def keys(self, tensor: Tensor) -> Tensor:
        """`[N, K, D]` -> `[G * K, S, D]`."""
        return self._view(tensor).transpose(1, 2).flatten(0, 1)

    def put_keys(self, tensor: Tensor, keys: Tensor) -> None:
        """The reverse of `keys`."""
        self._view(tensor)[:] = keys.unflatten(0, (self.num_groups, -1)).transpose(1, 2)


def _tiles(blocks: tuple[Block, ...], heads: int) -> Iterator[_Tile]:
    start = 0
    for block in blocks:
        pieces = _pieces(block, PIECE_QUERIES)
        largest = max((piece.stop - piece.start) * (piece.shared + piece.stop - piece.own) for piece in pieces)
        size = max(TILE_ELEMENTS // (heads * largest), 1)
        for first in range(0, block.num_groups, size):
            count = min(size, block.num_groups - first)
            yield _Tile(start, count, block.group_tokens, pieces)
            start += count * block.group_tokens


@cache
def _pieces(block: Block, width: int) -> tuple[_Piece, ...]:
    if len(block.completions) < 2:  # nothing is shared: one causal segment
        segments = [(0, block.group_tokens, 0)]
    else:
        segments = [(0, block.prompt, 0)]
        for length in block.completions:
            own = segments[-1][1]
            segments.append((own, own + length, block.prompt))
    return tuple(
        _Piece(start, min(start + width, stop), shared, own)
        for own, stop, shared in segments
        for start in range(own, stop, width)
    )


@cache
def _triangle(size: int, dtype: torch.dtype) -> Tensor:
    """`[size, size]`: 0 on and below the diagonal, -inf above."""
    return torch.full((size, size), -torch.inf, dtype=dtype).triu_(1)
