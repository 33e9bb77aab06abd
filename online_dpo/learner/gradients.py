"""The gradient of a global batch's mean loss, accumulated over micro-batches of any size (DESIGN invariant 7).

An objective that couples the items of a batch gets all of them at once: first their values without a graph, from
which the loss's gradient with respect to every log-prob follows, then one backward pass per micro-batch (DESIGN
section 6). A batch that is a single micro-batch needs one pass only.

Everything that depends on the number of ranks belongs here: with several, each rank would take its share of the
micro-batches, and the values of the whole batch and the gradients would be gathered from all ranks in `run`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from online_dpo.learner.batches import Batch, Outcome, join
from online_dpo.types import Labelled, Pair


class NotFinite(Exception):
    """A loss or a gradient is infinite or not a number. Weights and optimizer are untouched."""

    def __init__(self, what: str, items: Sequence[Pair | Labelled]) -> None:
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
    ) -> None:
        """Take what one step needs.

        Args:
            forward: the policy's values for one micro-batch, given its index; the same index gives the same values.
            objective: of a batch.
            is_coupled: whether `objective` needs the whole batch.
        """
        self._forward, self._objective, self._is_coupled = forward, objective, is_coupled

    def run(self, groups: Sequence[Sequence[Any]]) -> tuple[Batch, Outcome]:
        """Add the gradients of the mean loss over all groups to the parameters; the whole batch, detached.

        Raises:
            NotFinite: a loss is not finite; some gradients may have been added.
        """
        items = [item for group in groups for item in group]
        if self._is_coupled and len(groups) > 1:
            return self._run_coupled(groups, items)
        seen = []
        for index, group in enumerate(groups):
            batch = self._forward(index, group)
            loss = self._objective(batch).loss
            _expect_finite(loss, batch, group)
            # Each micro-batch adds its share of the mean over the global batch.
            (loss.sum() / len(items)).backward()
            seen.append(join([batch]))
        whole = join(seen)
        return whole, self._objective(whole)

    def _run_coupled(self, groups: Sequence[Sequence[Any]], items: Sequence[Any]) -> tuple[Batch, Outcome]:
        with torch.no_grad():
            whole = join([self._forward(index, group) for index, group in enumerate(groups)])
        leaves = [values.requires_grad_() for values in whole.differentiable]
        outcome = self._objective(whole.with_differentiable(leaves))
        _expect_finite(outcome.loss, whole, items)
        slopes = torch.autograd.grad(outcome.loss.sum() / len(items), leaves, materialize_grads=True)
        start = 0
        for index, group in enumerate(groups):
            batch = self._forward(index, group)
            part = slice(start, start + len(group))
            # Its gradient is the loss's, by the chain rule; its value means nothing.
            parts = [(slope[..., part] * v).sum() for slope, v in zip(slopes, batch.differentiable, strict=True)]
            torch.stack(parts).sum().backward()
            start += len(group)
        return join([whole]), outcome


def _expect_finite(loss: Tensor, batch: Batch, items: Sequence[Any]) -> None:
    """Raises NotFinite with the items at fault: those whose own values are bad, else those whose loss is."""
    own = torch.stack([values.isfinite().reshape(-1, len(items)).all(dim=0) for values in batch.inputs]).all(dim=0)
    good = loss.isfinite() if bool(own.all()) else own  # in a coupled loss, one bad value spoils all
    if not bool(good.all()):
        raise NotFinite("loss", [item for item, fine in zip(items, good.tolist(), strict=True) if not fine])
