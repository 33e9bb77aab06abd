"""What the log gets to know of one optimizer step."""

from __future__ import annotations

import torch
from torch import Tensor

from online_dpo.learner.objectives import Outcome
from online_dpo.learner.tensors import Batch, LabelledBatch, PairBatch

SIDES = ("chosen", "rejected")


def describe(batch: Batch, outcome: Outcome, *, with_log_ratios: bool) -> dict[str, float]:
    """Means over a batch, by the names that `Learner.step` documents; log_ratios only where there is a reference."""
    if isinstance(batch, PairBatch):
        return {**_describe_pairs(batch, outcome, with_log_ratios=with_log_ratios), **outcome.figures}
    return {**_describe_labelled(batch, outcome, kl=outcome.figures["kl"]), **outcome.figures}


def _describe_pairs(batch: PairBatch, outcome: Outcome, *, with_log_ratios: bool) -> dict[str, float]:
    gap = outcome.rewards[0] - outcome.rewards[1]
    rows = {"logps": batch.logps} | ({"log_ratio": batch.logps - batch.ref_logps} if with_log_ratios else {})
    return {
        "loss": _mean(outcome.loss),
        "reward_accuracy": _mean(gap > 0.0),
        "reward_margin": _mean(gap),
        **{f"{side}_{name}": _mean(row) for name, both in rows.items() for side, row in zip(SIDES, both, strict=True)},
        "num_pairs": float(gap.numel()),
    }


def _describe_labelled(batch: LabelledBatch, outcome: Outcome, *, kl: float) -> dict[str, float]:
    """Chosen are the desirable ones. What a batch has none of is left out."""
    log_ratios = batch.logps - batch.ref_logps
    masks = dict(zip(SIDES, (batch.desirable, ~batch.desirable), strict=True))
    present = {side: mask for side, mask in masks.items() if bool(mask.any())}
    figures = {
        "loss": _mean(outcome.loss),
        # Judged right: on its own side of the estimated KL, where the loss has its middle.
        "reward_accuracy": _mean(torch.where(batch.desirable, log_ratios > kl, log_ratios < kl)),
        **{f"{side}_logps": _mean(batch.logps[mask]) for side, mask in present.items()},
        **{f"{side}_log_ratio": _mean(log_ratios[mask]) for side, mask in present.items()},
        "num_items": float(log_ratios.numel()),
    }
    if len(present) == 2:
        chosen, rejected = (_mean(outcome.rewards[mask]) for mask in present.values())
        figures["reward_margin"] = chosen - rejected
    return figures


def _mean(values: Tensor) -> float:
    return values.double().mean().item()
