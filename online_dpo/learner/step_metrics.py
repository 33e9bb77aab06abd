"""What the log gets to know of one optimizer step."""

from __future__ import annotations

import torch
from torch import Tensor

from online_dpo.learner.objectives import Outcome
from online_dpo.learner.tensors import Batch, LabelledBatch, PairBatch

SIDES = ("chosen", "rejected")


def describe(batch: Batch, outcome: Outcome, *, with_gains: bool) -> dict[str, float]:
    """Means over a batch, by the names that `Learner.step` documents; gains only where there is a reference."""
    if isinstance(batch, PairBatch):
        return {**_describe_pairs(batch, outcome, with_gains=with_gains), **outcome.figures}
    return {**_describe_labelled(batch, outcome, kl=outcome.figures["kl"]), **outcome.figures}


def _describe_pairs(batch: PairBatch, outcome: Outcome, *, with_gains: bool) -> dict[str, float]:
    gap = outcome.rewards[0] - outcome.rewards[1]
    rows = {"logps": batch.logps} | ({"gain": batch.logps - batch.ref_logps} if with_gains else {})
    return {
        "loss": _mean(outcome.loss),
        "implicit_accuracy": _mean(gap > 0.0),
        "implicit_margin": _mean(gap),
        **{f"{side}_{name}": _mean(row) for name, both in rows.items() for side, row in zip(SIDES, both, strict=True)},
        "num_pairs": float(gap.numel()),
    }


def _describe_labelled(batch: LabelledBatch, outcome: Outcome, *, kl: float) -> dict[str, float]:
    """Chosen are the desirable ones. What a batch has none of is left out."""
    gains = batch.logps - batch.ref_logps
    masks = dict(zip(SIDES, (batch.desirable, ~batch.desirable), strict=True))
    present = {side: mask for side, mask in masks.items() if bool(mask.any())}
    figures = {
        "loss": _mean(outcome.loss),
        # Judged right: on its own side of the estimated KL, where the loss has its middle.
        "implicit_accuracy": _mean(torch.where(batch.desirable, gains > kl, gains < kl)),
        **{f"{side}_logps": _mean(batch.logps[mask]) for side, mask in present.items()},
        **{f"{side}_gain": _mean(gains[mask]) for side, mask in present.items()},
        "num_items": float(gains.numel()),
    }
    if len(present) == 2:
        chosen, rejected = (_mean(outcome.rewards[mask]) for mask in present.values())
        figures["implicit_margin"] = chosen - rejected
    return figures


def _mean(values: Tensor) -> float:
    return values.double().mean().item()
