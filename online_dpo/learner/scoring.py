"""Log-probs of rows under the policy or other weights, shared out over the ranks of a learner."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from peft import PeftModel

from online_dpo.learner import adapter_slots
from online_dpo.learner.communication import Communicator
from online_dpo.learner.forward import Forward
from online_dpo.learner.grouping import deal_rows
from online_dpo.types import Row, Scores, WeightsRef

T = TypeVar("T")


class Scoring:
    """Scores rows; between calls the policy is active, trainable and in eval mode."""

    def __init__(self, model: PeftModel, forward: Forward, given: Forward | None, ranks: Communicator) -> None:
        """Take what rows go through.

        Args:
            model: the policy's, from `adapter_slots.attach`.
            forward: through that model.
            given: through the model that `reference.path` names, if it names one.
            ranks: among which rows are shared out.
        """
        self._model, self._forward, self._given, self._ranks = model, forward, given, ranks

    def scores(self, rows: Sequence[Row], under: WeightsRef) -> Scores:
        """As `Learner.score`, under one kind of weights."""

        def of(forward: Forward, group: list[Row]) -> Iterable[tuple[tuple[float, ...], tuple[float, ...]]]:
            for logps, entropies in zip(*forward.scores(group), strict=True):
                yield tuple(logps.tolist()), tuple(entropies.tolist()) if under == "policy" else ()

        found = self._shared_out(rows, under, of)
        entropies = tuple(entropies for _, entropies in found) if under == "policy" else None
        return Scores(token_logps=tuple(logps for logps, _ in found), entropies=entropies)

    @torch.no_grad()
    def training_logps(self, rows: Sequence[Row], under: WeightsRef) -> list[list[float]]:
        """Token log-probs exactly as training computes them: a policy that is its reference has log-ratios of zero."""
        return self._shared_out(
            rows, under, lambda forward, group: (r.tolist() for r in forward.token_logps(group, training=False).logps)
        )

    def _shared_out(
        self, rows: Sequence[Row], under: WeightsRef, of: Callable[[Forward, list[Row]], Iterable[T]]
    ) -> list[T]:
        """What `of` finds for each of the rows, in the order given. Every rank does its share, and all get all."""
        share = deal_rows(rows, self._ranks.size)[self._ranks.rank]
        mine: dict[int, T] = {}
        with self._weights_of(under) as forward:
            for group in forward.row_groups([rows[i] for i in share]):
                indices = [share[i] for i in group]
                mine |= zip(indices, of(forward, [rows[i] for i in indices]), strict=True)
        found = {index: value for part in self._ranks.gather(mine) for index, value in part.items()}
        return [found[index] for index in range(len(rows))]

    @contextmanager
    def _weights_of(self, under: WeightsRef) -> Iterator[Forward]:
        """What rows go through to be scored under other weights: the policy's model for the time being, or another."""
        if under == "reference_model" and self._given is not None:
            yield self._given
        else:
            with adapter_slots.weights_of(self._model, under):
                yield self._forward
