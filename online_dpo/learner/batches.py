"""A batch of items as the losses see it, with a number per item and nothing per token; and what a loss makes of it.

Everything is float64: log-ratios are small differences of large sums, and keep what the tokens' float32 has. There is
one class of batches for each kind of items in `learner.items`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self, TypeAlias, TypeVar, cast

import torch
from torch import Tensor

from online_dpo.learner.logprobs import LogpTensors
from online_dpo.learner.losses import RunningMean
from online_dpo.types import Demonstration, Labelled, Pair

ObjectiveState: TypeAlias = tuple[RunningMean, ...]
"""What an objective remembers from batch to batch of a round, one entry for each of its terms."""

_SIDES = ("chosen", "rejected")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What an objective makes of a batch of `P` items."""

    loss: Tensor  # [P] as optimised: weights included, to be averaged over the global batch
    # [2, P] of pairs, [P] of labelled answers: beta times the log-ratios the loss is of; no gradient. None = none.
    rewards: Tensor | None
    beta: float | None  # of the first term; None = the objective has none
    state: ObjectiveState  # after this batch
    figures: dict[str, float]  # further numbers for the log


class Batch(ABC):
    """What the learner needs of a batch, whatever its items are. Subclasses are dataclasses of tensors `[..., P]`."""

    __slots__ = ()

    @classmethod
    @abstractmethod
    def of(cls, items: Sequence[Any], scored: LogpTensors) -> Self:
        """Put items and what the policy says about them together.

        Args:
            items: `P` of them.
            scored: of the trained rows of each item in turn.
        """

    entropy: Tensor  # [P] nats, summed over the item's trained tokens; differentiable; zero where not asked for

    @property
    def num_items(self) -> int:
        """`P`."""
        return int(self.differentiable[0].shape[-1])

    def to(self, device: torch.device | str) -> Self:
        """The batch on another device."""
        columns = fields(cast(Any, self))
        return replace(cast(Any, self), **{column.name: getattr(self, column.name).to(device) for column in columns})

    @property
    @abstractmethod
    def differentiable(self) -> tuple[Tensor, ...]:
        """What depends on the policy's weights."""

    @property
    @abstractmethod
    def inputs(self) -> tuple[Tensor, ...]:
        """What may turn out not to be finite."""

    @abstractmethod
    def with_differentiable(self, tensors: Sequence[Tensor]) -> Self:
        """The batch with other tensors in the place of `differentiable`."""

    @abstractmethod
    def describe(self, outcome: Outcome, *, with_log_ratios: bool) -> dict[str, float]:
        """What the log gets to know of the step, by the names that `Learner.step` documents: means over the batch.

        Args:
            outcome: of the objective for this batch.
            with_log_ratios: whether there is a reference.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class PairBatch(Batch):
    """`P` pairs; where there are two rows, the first is about the chosen answers and the second about the rejected."""

    logps: Tensor  # [2, P] nats, summed over the completion's tokens, under the policy; differentiable
    tail_logps: Tensor  # [2, P] the part of it beyond the length of the pair's shorter answer; differentiable
    ref_logps: Tensor  # [2, P] the same two under the reference; zero where the objective has none
    ref_tail_logps: Tensor  # [2, P]
    lengths: Tensor  # [2, P] tokens
    tail_lengths: Tensor  # [2, P] tokens
    alignment: Tensor  # [2, P] mean nats by which tokens are likelier than a sampled one; zero where not asked for
    margin: Tensor  # [P] the judge's; NaN for pairs from data sets
    probability: Tensor  # [P] the judge's, that chosen beats rejected; NaN for pairs from data sets
    weight: Tensor  # [P]
    entropy: Tensor  # [P]

    @classmethod
    def of(cls, items: Sequence[Pair], scored: LogpTensors) -> Self:
        shared = [pair.shared_length for pair in items for _ in range(2)]
        logps = _two_rows(torch.stack([row.sum(dtype=torch.float64) for row in scored.logps]))
        tails = [row[start:].sum(dtype=torch.float64) for row, start in zip(scored.logps, shared, strict=True)]
        alignment = torch.zeros_like(logps).detach()
        if scored.collisions is not None:
            likelier = [row.detach() - c for row, c in zip(scored.logps, scored.collisions, strict=True)]
            alignment = _two_rows(torch.stack([row.mean(dtype=torch.float64) for row in likelier]))

        def numbers(values: Sequence[float | None], unknown: float) -> Tensor:
            return logps.new_tensor([unknown if value is None else value for value in values])

        lengths = [[len(pair.chosen.token_ids) for pair in items], [len(pair.rejected.token_ids) for pair in items]]
        return cls(
            logps=logps,
            tail_logps=_two_rows(torch.stack(tails)),
            ref_logps=torch.stack(
                [numbers([p.chosen_ref_logps for p in items], 0.0), numbers([p.rejected_ref_logps for p in items], 0.0)]
            ),
            ref_tail_logps=torch.stack(
                [
                    numbers([p.chosen_ref_tail_logps for p in items], 0.0),
                    numbers([p.rejected_ref_tail_logps for p in items], 0.0),
                ]
            ),
            lengths=logps.new_tensor(lengths),
            tail_lengths=logps.new_tensor(lengths) - logps.new_tensor([pair.shared_length for pair in items]),
            alignment=alignment,
            margin=numbers([p.margin for p in items], float("nan")),
            probability=numbers([p.probability for p in items], float("nan")),
            weight=numbers([p.weight for p in items], 1.0),
            entropy=_two_rows(_entropies(scored, logps)).sum(dim=0),
        )

    @property
    def differentiable(self) -> tuple[Tensor, ...]:
        return self.logps, self.tail_logps, self.entropy

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        return self.logps, self.ref_logps, self.ref_tail_logps, self.weight

    def with_differentiable(self, tensors: Sequence[Tensor]) -> Self:
        logps, tail_logps, entropy = tensors
        return replace(self, logps=logps, tail_logps=tail_logps, entropy=entropy)

    def describe(self, outcome: Outcome, *, with_log_ratios: bool) -> dict[str, float]:
        assert outcome.rewards is not None
        margin = outcome.rewards[0] - outcome.rewards[1]
        rows = {"logps": self.logps} | ({"log_ratio": self.logps - self.ref_logps} if with_log_ratios else {})
        return {
            "loss": _mean(outcome.loss),
            "reward_accuracy": _mean(margin > 0.0),
            "reward_margin": _mean(margin),
            **{f"{side}_{name}": _mean(both[i]) for name, both in rows.items() for i, side in enumerate(_SIDES)},
            "num_pairs": float(margin.numel()),
            **outcome.figures,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledBatch(Batch):
    """`N` labelled answers."""

    logps: Tensor  # [N] nats, summed over the completion's tokens, under the policy; differentiable
    ref_logps: Tensor  # [N] under the reference
    desirable: Tensor  # [N] bool
    weight: Tensor  # [N]
    entropy: Tensor  # [N]

    @classmethod
    def of(cls, items: Sequence[Labelled], scored: LogpTensors) -> Self:
        sums = torch.stack([row.sum(dtype=torch.float64) for row in scored.logps])
        return cls(
            logps=sums,
            ref_logps=sums.new_tensor([item.ref_logps or 0.0 for item in items]),
            desirable=torch.tensor([item.desirable for item in items], device=sums.device),
            weight=sums.new_tensor([item.weight for item in items]),
            entropy=_entropies(scored, sums),
        )

    @property
    def differentiable(self) -> tuple[Tensor, ...]:
        return self.logps, self.entropy

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        return self.logps, self.ref_logps, self.weight

    def with_differentiable(self, tensors: Sequence[Tensor]) -> Self:
        logps, entropy = tensors
        return replace(self, logps=logps, entropy=entropy)

    def describe(self, outcome: Outcome, *, with_log_ratios: bool) -> dict[str, float]:
        """Chosen are the desirable ones. What a batch has none of is left out."""
        log_ratios, kl = self.logps - self.ref_logps, outcome.figures["kl"]
        rows = {"logps": self.logps} | ({"log_ratio": log_ratios} if with_log_ratios else {})
        masks = dict(zip(_SIDES, (self.desirable, ~self.desirable), strict=True))
        present = {side: mask for side, mask in masks.items() if bool(mask.any())}
        figures = {
            "loss": _mean(outcome.loss),
            # Judged right: on its own side of the estimated KL, where the loss has its middle.
            "reward_accuracy": _mean(torch.where(self.desirable, log_ratios > kl, log_ratios < kl)),
            **{f"{side}_{name}": _mean(row[mask]) for name, row in rows.items() for side, mask in present.items()},
            "num_items": float(log_ratios.numel()),
        }
        if len(present) == 2 and outcome.rewards is not None:
            chosen, rejected = (_mean(outcome.rewards[mask]) for mask in present.values())
            figures["reward_margin"] = chosen - rejected
        return {**figures, **outcome.figures}


@dataclass(frozen=True, slots=True, kw_only=True)
class DemonstrationBatch(Batch):
    """`N` demonstrations."""

    logps: Tensor  # [N] nats, summed over the trained tokens, under the policy; differentiable
    entropy: Tensor  # [N]

    @classmethod
    def of(cls, items: Sequence[Demonstration], scored: LogpTensors) -> Self:
        flags = [torch.tensor(item.trained, device=row.device) for item, row in zip(items, scored.logps, strict=True)]
        sums = [row[flag].sum(dtype=torch.float64) for row, flag in zip(scored.logps, flags, strict=True)]
        if scored.entropies is not None:
            trained = tuple(row[flag] for row, flag in zip(scored.entropies, flags, strict=True))
            scored = scored._replace(entropies=trained)
        logps = torch.stack(sums)
        return cls(logps=logps, entropy=_entropies(scored, logps))

    @property
    def differentiable(self) -> tuple[Tensor, ...]:
        return self.logps, self.entropy

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        return (self.logps,)

    def with_differentiable(self, tensors: Sequence[Tensor]) -> Self:
        logps, entropy = tensors
        return replace(self, logps=logps, entropy=entropy)

    def describe(self, outcome: Outcome, *, with_log_ratios: bool) -> dict[str, float]:
        return {"loss": _mean(outcome.loss), "num_items": float(self.num_items), **outcome.figures}


B = TypeVar("B", bound=Batch)


def join(batches: Sequence[B]) -> B:
    """Several batches as one, detached."""
    batch_type: Any = type(batches[0])
    columns = {field.name: [getattr(batch, field.name) for batch in batches] for field in fields(batch_type)}
    return cast(B, batch_type(**{name: torch.cat(parts, dim=-1).detach() for name, parts in columns.items()}))


def _entropies(scored: LogpTensors, logps: Tensor) -> Tensor:
    """`[B]` each row's entropies, summed; zeros where they were not asked for.

    Args:
        scored: of `B` rows.
        logps: of as many numbers.
    """
    if scored.entropies is None:
        return torch.zeros(logps.numel(), dtype=logps.dtype, device=logps.device)
    return torch.stack([row.sum(dtype=torch.float64) for row in scored.entropies])


def _two_rows(values: Tensor) -> Tensor:
    """`[2 P]`, chosen and rejected in turn, to `[2, P]`."""
    return values.reshape(-1, 2).T


def _mean(values: Tensor) -> float:
    return values.double().mean().item()
