"""A batch of items as the losses see it: a number per item, nothing per token.

Everything is float64: log_ratios are small differences of large sums, and keep what the tokens' float32 has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TypeAlias, TypeVar, cast

import torch
from torch import Tensor

from online_dpo.learner.logprobs import TokenLogps
from online_dpo.types import Labelled, Pair


@dataclass(frozen=True, slots=True, kw_only=True)
class PairBatch:
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

    @property
    def differentiable(self) -> tuple[Tensor, ...]:
        """What depends on the policy's weights."""
        return self.logps, self.tail_logps

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """What may turn out not to be finite."""
        return self.logps, self.ref_logps, self.ref_tail_logps, self.weight

    def with_differentiable(self, tensors: Sequence[Tensor]) -> PairBatch:
        logps, tail_logps = tensors
        return replace(self, logps=logps, tail_logps=tail_logps)


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledBatch:
    """`N` labelled answers."""

    logps: Tensor  # [N] nats, summed over the completion's tokens, under the policy; differentiable
    ref_logps: Tensor  # [N] under the reference
    desirable: Tensor  # [N] bool
    weight: Tensor  # [N]

    @property
    def differentiable(self) -> tuple[Tensor, ...]:
        return (self.logps,)

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        return self.logps, self.ref_logps, self.weight

    def with_differentiable(self, tensors: Sequence[Tensor]) -> LabelledBatch:
        (logps,) = tensors
        return replace(self, logps=logps)


Batch: TypeAlias = PairBatch | LabelledBatch
B = TypeVar("B", bound=Batch)


def pair_batch(pairs: Sequence[Pair], scored: TokenLogps) -> PairBatch:
    """Put pairs and what the policy says about them together.

    Args:
        pairs: `P` of them.
        scored: of two rows for each pair, chosen and rejected in turn.
    """
    shared = [pair.shared_length for pair in pairs for _ in range(2)]
    logps = _two_rows(torch.stack([row.sum(dtype=torch.float64) for row in scored.logps]))
    tails = [row[start:].sum(dtype=torch.float64) for row, start in zip(scored.logps, shared, strict=True)]
    alignment = torch.zeros_like(logps).detach()
    if scored.collisions is not None:
        likelier = [row.detach() - c for row, c in zip(scored.logps, scored.collisions, strict=True)]
        alignment = _two_rows(torch.stack([row.mean(dtype=torch.float64) for row in likelier]))

    def numbers(values: Sequence[float | None], unknown: float) -> Tensor:
        return logps.new_tensor([unknown if value is None else value for value in values])

    lengths = [[len(pair.chosen.token_ids) for pair in pairs], [len(pair.rejected.token_ids) for pair in pairs]]
    return PairBatch(
        logps=logps,
        tail_logps=_two_rows(torch.stack(tails)),
        ref_logps=torch.stack(
            [numbers([p.chosen_ref_logps for p in pairs], 0.0), numbers([p.rejected_ref_logps for p in pairs], 0.0)]
        ),
        ref_tail_logps=torch.stack(
            [
                numbers([p.chosen_ref_tail_logps for p in pairs], 0.0),
                numbers([p.rejected_ref_tail_logps for p in pairs], 0.0),
            ]
        ),
        lengths=logps.new_tensor(lengths),
        tail_lengths=logps.new_tensor(lengths) - logps.new_tensor([pair.shared_length for pair in pairs]),
        alignment=alignment,
        margin=numbers([p.margin for p in pairs], float("nan")),
        probability=numbers([p.probability for p in pairs], float("nan")),
        weight=numbers([p.weight for p in pairs], 1.0),
    )


def labelled_batch(items: Sequence[Labelled], logps: Sequence[Tensor]) -> LabelledBatch:
    """Put labelled answers and the token log-probs of their completions together."""
    sums = torch.stack([row.sum(dtype=torch.float64) for row in logps])
    return LabelledBatch(
        logps=sums,
        ref_logps=sums.new_tensor([item.ref_logps or 0.0 for item in items]),
        desirable=torch.tensor([item.desirable for item in items], device=sums.device),
        weight=sums.new_tensor([item.weight for item in items]),
    )


def join(batches: Sequence[B]) -> B:
    """Several batches as one, detached."""
    kind = type(batches[0])
    columns = {field.name: [getattr(batch, field.name) for batch in batches] for field in fields(kind)}
    return cast(B, kind(**{name: torch.cat(parts, dim=-1).detach() for name, parts in columns.items()}))


def _two_rows(values: Tensor) -> Tensor:
    """`[2 P]`, chosen and rejected in turn, to `[2, P]`."""
    return values.reshape(-1, 2).T
