"""Rows laid end to end without padding; completions of one prompt may share its tokens.

A *group* is a prompt followed by one or more completions of it. Each completion attends to the prompt and to itself,
at the positions it would have alone, so every log-prob and gradient is that of separate rows while the prompt goes
through the model once. Groups of equal shape lie next to each other and form a *block*, which attention can take as
one dense batch.

Shapes: `N` tokens of the batch, `M` completion tokens, `B` rows, `G` groups of a block, `S` tokens of one group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from online_dpo.errors import DataError
from online_dpo.types import Row

MIN_SHARED_TOKENS = 8
"""Prompts shorter than this are repeated rather than shared: below it, what sharing saves in tokens is less than what
splitting its attention costs (docs/performance.md)."""


@dataclass(frozen=True, slots=True)
class Block:
    """Neighbouring groups of the same shape."""

    num_groups: int  # G
    prompt: int  # tokens
    completions: tuple[int, ...]  # tokens of each completion, longest first

    @property
    def group_tokens(self) -> int:
        """`S`."""
        return self.prompt + sum(self.completions)

    @property
    def num_tokens(self) -> int:
        return self.num_groups * self.group_tokens


@dataclass(frozen=True)
class PackedBatch:
    """Rows as the model reads them: one long sequence, and what belongs together in it."""

    input_ids: Tensor  # [1, N] int64
    position_ids: Tensor  # [1, N] int64, as if each row were alone
    predicting: Tensor  # [M] int64: where the states are that predict the completion tokens, row after row
    targets: Tensor  # [M] int64: those tokens
    lengths: tuple[int, ...]  # [B] completion tokens of each row, in the order the rows were given
    blocks: tuple[Block, ...]

    @property
    def num_tokens(self) -> int:
        return self.input_ids.shape[1]

    def sees(self) -> Any:
        """Who attends to whom, as FlexAttention asks: `(batch, head, query, key) -> bool`."""
        group, segment = (owner.to(self.input_ids.device) for owner in self._owners())
        position = self.position_ids[0]

        def sees(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            same_path = (segment[key] == -1) | (segment[key] == segment[query])
            return (group[query] == group[key]) & same_path & (position[key] <= position[query])

        return sees

    @cached_property
    def block_mask(self) -> Any:
        """FlexAttention's form of `sees`; all layers share it."""
        from torch.nn.attention.flex_attention import create_block_mask

        size = self.num_tokens
        return create_block_mask(self.sees(), None, None, size, size, device=str(self.input_ids.device))

    def _owners(self) -> tuple[Tensor, Tensor]:
        """`[N]` group of each token, and `[N]` its completion in the group; -1 for the prompt."""
        groups, segments, first = [], [], 0
        for block in self.blocks:
            lengths = torch.tensor([block.prompt, *block.completions])
            segment = torch.arange(-1, len(block.completions)).repeat_interleave(lengths)
            segments.append(segment.repeat(block.num_groups))
            groups.append(torch.arange(first, first + block.num_groups).repeat_interleave(block.group_tokens))
            first += block.num_groups
        return torch.cat(groups), torch.cat(segments)

    def to(self, device: torch.device | str) -> PackedBatch:
        return replace(
            self,
            input_ids=self.input_ids.to(device),
            position_ids=self.position_ids.to(device),
            predicting=self.predicting.to(device),
            targets=self.targets.to(device),
        )


@dataclass(frozen=True, slots=True)
class _Group:
    prompt: tuple[int, ...]
    rows: tuple[int, ...]  # indices of the rows, longest completion first

    def shape(self, rows: Sequence[Row]) -> tuple[int, ...]:
        return (len(self.prompt), *(len(rows[i].completion_ids) for i in self.rows))


def pack_rows(rows: Sequence[Row], *, min_shared: int | None) -> PackedBatch:
    """Lay rows end to end.

    Args:
        rows: `B` rows, each with at least one prompt token, in any order.
        min_shared: completions of the same prompt follow one copy of it if it has so many tokens; None = never.

    Raises:
        DataError: a row's prompt has no tokens, so nothing predicts its first completion token.
    """
    if any(not row.prompt_ids for row in rows):
        raise DataError(
            "a prompt has no tokens and the model needs one to predict the first answer token from; "
            "use a tokenizer that adds a BOS token, or drop empty prompts"
        )
    groups = sorted(_groups(rows, min_shared), key=lambda group: group.shape(rows), reverse=True)
    ids: list[int] = []
    positions: list[int] = []
    predicting: list[list[int]] = [[] for _ in rows]
    shapes: list[tuple[int, ...]] = []
    for group in groups:
        prompt = len(group.prompt)
        last_of_prompt = len(ids) + prompt - 1
        ids += group.prompt
        positions += range(prompt)
        for index in group.rows:
            completion = rows[index].completion_ids
            start = len(ids)
            predicting[index] = [last_of_prompt, *range(start, start + len(completion) - 1)][: len(completion)]
            ids += completion
            positions += range(prompt, prompt + len(completion))
        shapes.append(group.shape(rows))
    return PackedBatch(
        input_ids=torch.tensor([ids]),
        position_ids=torch.tensor([positions]),
        predicting=torch.tensor([place for places in predicting for place in places], dtype=torch.int64),
        targets=torch.tensor([token for row in rows for token in row.completion_ids], dtype=torch.int64),
        lengths=tuple(len(row.completion_ids) for row in rows),
        blocks=_blocks(shapes),
    )


def packed_tokens(rows: Sequence[Row], *, min_shared: int | None) -> int:
    """Tokens that some rows have when they are packed together."""
    return sum(sum(group.shape(rows)) for group in _groups(rows, min_shared))


def _groups(rows: Sequence[Row], min_shared: int | None) -> list[_Group]:
    groups: list[_Group] = []
    by_prompt: dict[tuple[int, ...], list[int]] = {}
    for index, row in enumerate(rows):
        if min_shared is not None and len(row.prompt_ids) >= min_shared:
            by_prompt.setdefault(row.prompt_ids, []).append(index)
        else:
            groups.append(_Group(row.prompt_ids, (index,)))
    for prompt, members in by_prompt.items():
        # Longest first, so that (60, 64) and (64, 60) tokens are of one shape.
        members.sort(key=lambda index: -len(rows[index].completion_ids))
        groups.append(_Group(prompt, tuple(members)))
    return groups


def _blocks(shapes: Sequence[tuple[int, ...]]) -> tuple[Block, ...]:
    """Runs of equal shapes; completions without tokens take no part in attention."""
    blocks: list[Block] = []
    for prompt, *completions in shapes:
        lengths = tuple(length for length in completions if length)
        if blocks and (blocks[-1].prompt, blocks[-1].completions) == (prompt, lengths):
            blocks[-1] = replace(blocks[-1], num_groups=blocks[-1].num_groups + 1)
        else:
            blocks.append(Block(1, prompt, lengths))
    return tuple(blocks)
