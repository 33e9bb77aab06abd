"""Losses that couple the items of a global batch, and the averages that couple them.

Their values need every item of the batch at once, so the learner hands them all of it, whatever its micro-batches
(DESIGN section 6). Conventions and shared arguments as in `online_dpo.learner.losses.margin`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from online_dpo.learner.losses.margin import cdpo_loss
from online_dpo.learner.losses.shapes import expect_same_shape


def aot_loss(left: Tensor, right: Tensor, *, beta: float, label_smoothing: float) -> Tensor:
    """AOT (arXiv:2406.05882, section 3): each k-th largest on the left should exceed the k-th on the right.

    Both samples are sorted, and the logistic loss is taken of their differences. This measures, by optimal transport,
    how far the left sample is from dominating the right one (first-order stochastic dominance). Each loss is returned
    at the place of the `left` value that it is of.

    Args:
        left: `[P]` the policy's log pi(y_w|x) - log pi(y_l|x); in the unpaired form, the chosen log-ratios.
        right: `[P]` the same under the reference; in the unpaired form, the rejected log-ratios.
        beta: scale of the differences.
        label_smoothing: as in `cdpo_loss`; 0 in the paper.
    """
    expect_same_shape(left=left, right=right)
    order = left.argsort(stable=True)
    losses = cdpo_loss(left[order], right.sort(stable=True).values, beta=beta, label_smoothing=label_smoothing)
    return losses[order.argsort()]


def kto_loss(
    log_ratio: Tensor,
    desirable: Tensor,
    *,
    kl: Tensor,
    beta: float,
    desirable_weight: float,
    undesirable_weight: float,
) -> Tensor:
    """KTO (arXiv:2402.01306, eq. 7), one value per answer: `lambda_y - v`.

    That is `lambda_D (1 - sigmoid(beta (g - z)))` for desirable answers and `lambda_U (1 - sigmoid(beta (z - g)))`
    for the others.

    Args:
        log_ratio: `[N]` log pi(y|x) - log pi_ref(y|x), nats per completion.
        desirable: `[N]` bool.
        kl: scalar z, from `kl_estimate`; no gradient.
        beta: risk aversion; strength of the pull towards the reference.
        desirable_weight: lambda_D. The paper wants `lambda_D n_D / (lambda_U n_U)` between 1 and 4/3 (eq. 8).
        undesirable_weight: lambda_U.
    """
    expect_same_shape(log_ratio=log_ratio, desirable=desirable)
    # Tensors of the log-ratios' own precision: bare numbers would be float32.
    sign = torch.where(desirable, log_ratio.new_tensor(1.0), log_ratio.new_tensor(-1.0))
    weight = torch.where(desirable, log_ratio.new_tensor(desirable_weight), log_ratio.new_tensor(undesirable_weight))
    return weight * (1.0 - (beta * sign * (log_ratio - kl.detach())).sigmoid())


def kl_estimate(mismatched_log_ratio: Tensor) -> Tensor:
    """KTO's z: the mean log-ratio of completions under other prompts, not below zero, without gradient.

    Args:
        mismatched_log_ratio: `[M]` log pi(y'|x) - log pi_ref(y'|x) for answers y' to other prompts. Without any, the
            estimate is zero.
    """
    if mismatched_log_ratio.numel() == 0:
        return mismatched_log_ratio.new_zeros(())
    return mismatched_log_ratio.detach().mean().clamp(min=0.0)


@dataclass(frozen=True, slots=True)
class RunningMean:
    """The mean over batches so far, each counting once: BCO's delta (arXiv:2404.04656)."""

    mean: float = 0.0
    num_batches: int = 0

    def updated(self, value: float) -> RunningMean:
        """The mean with one more batch in it."""
        count = self.num_batches + 1
        return RunningMean(self.mean + (value - self.mean) / count, count)
