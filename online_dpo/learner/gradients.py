"""The gradient of a global batch's mean loss, accumulated over micro-batches of any size (DESIGN invariant 7).

An objective that couples the items of a batch gets all of them at once: first their values without a graph, from
which the loss's gradient with respect to every log-prob follows, then one backward pass per micro-batch (DESIGN
section 6). A batch that is a single micro-batch needs one pass only.

Each rank of a learner takes its share of the items, and then knows the values of the whole batch. The sum of the
gradients over ranks is `communication.add_gradients`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from online_dpo.learner.batches import Batch, Outcome, join
from online_dpo.learner.communication import Communicator
from online_dpo.types import AnyItem


class NotFinite(Exception):
    """A loss or a gradient is infinite or not a number. Weights and optimizer are untouched."""

    def __init__(self, what: str, items: Sequence[AnyItem]) -> None:
        super().__init__(f"the {what} is not finite")
        self.what = what
        self.items = list(items)


class Accumulation:
    """How the micro-batches of one optimizer step become values and gradients."""

    def __init__(
        self,
        forward: Callable[[int, Sequence[Any]], Batch],
        objective: Callable[[Any], Outcome],
        *,
        is_coupled: bool,
        ranks: Communicator,
        device: torch.device,
    ) -> None:
        """Take what one step needs.

        Args:
            forward: the policy's values for one micro-batch, given its index; the same index gives the same values.
            objective: of a batch.
            is_coupled: whether `objective` needs the whole batch.
            ranks: whose items together make up the batch.
            device: where the objective computes.
        """
        self._forward, self._objective, self._is_coupled = forward, objective, is_coupled
        self._ranks, self._device = ranks, device

    def run(self, groups: Sequence[Sequence[Any]], num_items: int) -> tuple[Batch, Outcome]:
        """Add this rank's part of the gradients of the mean loss over the whole batch to the parameters.

        Args:
            groups: micro-batches of this rank; there may be none.
            num_items: of the whole batch, on all ranks together.

        Returns:
            The whole batch, detached, and what the objective makes of it.

        Raises:
            NotFinite: a loss is not finite, on whichever rank; some gradients may have been added.
        """
        if self._is_coupled and (len(groups) > 1 or self._ranks.size > 1):
            return self._run_coupled(groups, num_items)
        seen: list[Batch] = []
        bad: list[Any] = []
        for index, group in enumerate(groups):
            batch = self._forward(index, group)
            loss = self._objective(batch).loss
            if bad := [item for item, fine in zip(group, _are_good(loss, batch), strict=True) if not fine]:
                break
            # Each micro-batch adds its share of the mean over the global batch.
            (loss.sum() / num_items).backward()
            seen.append(join([batch]))
        self._expect_finite(bad)
        whole, _ = self._gathered(seen)
        return whole, self._objective(whole)

    def _run_coupled(self, groups: Sequence[Sequence[Any]], num_items: int) -> tuple[Batch, Outcome]:
        with torch.no_grad():
            whole, start = self._gathered([self._forward(index, group) for index, group in enumerate(groups)])
        leaves = [values.requires_grad_() for values in whole.differentiable]
        outcome = self._objective(whole.with_differentiable(leaves))
        mine = [item for group in groups for item in group]
        good = _are_good(outcome.loss, whole)[start : start + len(mine)]
        self._expect_finite([item for item, fine in zip(mine, good, strict=True) if not fine])
        slopes = torch.autograd.grad(outcome.loss.sum() / num_items, leaves, materialize_grads=True)
        for index, group in enumerate(groups):
            batch = self._forward(index, group)
            part = slice(start, start + len(group))
            # Its gradient is the loss's, by the chain rule; its value means nothing.
            parts = [(slope[..., part] * v).sum() for slope, v in zip(slopes, batch.differentiable, strict=True)]
            torch.stack(parts).sum().backward()
            start += len(group)
        return join([whole]), outcome

    def _gathered(self, batches: Sequence[Batch]) -> tuple[Batch, int]:
        """The batches of all ranks as one, detached, and where this rank's items begin in it."""
        ranks = self._ranks
        if ranks.size == 1:
            return join(batches), 0
        parts = ranks.gather(join(batches).to("cpu") if batches else None)
        start = sum(part.num_items for part in parts[: ranks.rank] if part is not None)
        return join([part for part in parts if part is not None]).to(self._device), start

    def _expect_finite(self, bad: Sequence[Any]) -> None:
        """Raises NotFinite on all ranks with the items at fault on any of them."""
        if found := [item for part in self._ranks.gather(bad) for item in part]:
            raise NotFinite("loss", found)


def _are_good(loss: Tensor, batch: Batch) -> list[bool]:
    """Which items are not at fault: those whose own values are finite, or where all values are, whose loss is."""
    own = torch.stack([values.isfinite().reshape(-1, len(loss)).all(dim=0) for values in batch.inputs]).all(dim=0)
    good: list[bool] = (loss.isfinite() if bool(own.all()) else own).tolist()  # one bad value spoils a coupled loss
    return good
