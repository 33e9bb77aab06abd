"""How the ranks of a learner work as one: what they tell each other, and the order in which they add.

A learner alone is the only rank of one. With several, every rank holds the base model and the adapter, and does its
share of each call. All results are the same on every rank: what is gathered is in rank order, and sums are taken in
that order, so that the same number of ranks gives the same bytes. An all-reduce of gloo or NCCL would not promise that,
because it may choose another algorithm, and with it another order, by size and topology.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")

PIECE = 1 << 24
"""Numbers that are added at once; every rank holds so many of each rank meanwhile."""

FOREVER = timedelta(days=30)
"""Ranks wait for each other as long as it takes: whoever started them sees who died or hangs, and ends the others."""


class Communicator(Protocol):
    """The ranks of a learner. All of them make the same calls in the same order."""

    @property
    def rank(self) -> int: ...  # of this process, from 0
    @property
    def size(self) -> int: ...  # number of ranks

    def gather(self, part: T) -> list[T]:
        """Each rank's part, in rank order. Parts are pickled, and hold no tensors of a GPU."""
        ...

    def add(self, values: Tensor) -> None:
        """Put the sum over all ranks, added in rank order, in the place of the values; `[N]` on every rank."""
        ...

    def follow_first(self, values: Tensor) -> None:
        """Put rank 0's values in the place of every rank's; `[N]`."""
        ...


class Alone:
    """One rank."""

    rank, size = 0, 1

    def gather(self, part: T) -> list[T]:
        return [part]

    def add(self, values: Tensor) -> None:
        """The values are the sum."""

    def follow_first(self, values: Tensor) -> None:
        """This is the first."""


class TorchCommunicator:
    """Ranks in processes of their own, joined by `torch.distributed`: by NCCL on GPUs, else by gloo."""

    def __init__(self, store: Any, *, rank: int, size: int) -> None:
        """Wait until all ranks are here. A process is one rank of one learner at a time.

        Args:
            store: of `torch.distributed`, which all ranks share.
            rank: of this process.
            size: number of ranks.
        """
        self.rank, self.size = rank, size
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=FOREVER)

    def gather(self, part: T) -> list[T]:
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, part)
        return found

    def add(self, values: Tensor) -> None:
        for piece in values.split(PIECE):
            parts = [torch.empty_like(piece) for _ in range(self.size)]
            dist.all_gather(parts, piece)
            piece.copy_(parts[0])
            for part in parts[1:]:
                piece.add_(part)

    def follow_first(self, values: Tensor) -> None:
        dist.broadcast(values, src=0)

    def close(self) -> None:
        """Leave the others."""
        dist.destroy_process_group()


def add_gradients(parameters: Sequence[Tensor], ranks: Communicator) -> None:
    """Give every rank the sum of all ranks' gradients. A parameter that has one nowhere keeps none."""
    if ranks.size == 1:
        return
    present = zip(*ranks.gather([p.grad is not None for p in parameters]), strict=True)
    trained = [p for p, anywhere in zip(parameters, map(any, present), strict=True) if anywhere]
    if not trained:
        return
    total = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in trained])
    ranks.add(total)
    for p, part in zip(trained, total.split([p.numel() for p in trained]), strict=True):
        p.grad = part.view_as(p)


@torch.no_grad()
def follow_first(parameters: Sequence[Tensor], ranks: Communicator) -> None:
    """Give every rank the first one's parameters, so that processors that round differently cannot drift apart."""
    if ranks.size == 1:
        return
    values = torch.cat([p.flatten() for p in parameters])
    ranks.follow_first(values)
    for p, part in zip(parameters, values.split([p.numel() for p in parameters]), strict=True):
        p.copy_(part.view_as(p))
