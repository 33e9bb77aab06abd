"""Losses that depend on each of the two log-ratios by itself, and not only on their difference.

Conventions and shared arguments as in `online_dpo.learner.losses.margin`. Rewards are `r = beta * log_ratio`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from online_dpo.learner.losses.shapes import expect_same_shape


def dpop_loss(chosen_log_ratio: Tensor, rejected_log_ratio: Tensor, *, beta: float, penalty: float) -> Tensor:
    """DPO-Positive (arXiv:2402.13228, eq. 3): DPO with a penalty for making the chosen answer less likely.

    `-log sigmoid(beta (g_w - g_l - penalty max(0, -g_w)))`.

    Args:
        penalty: the paper's lambda: each nat that the chosen answer lies below the reference takes so many nats off
            the difference of the log-ratios.
    """
    expect_same_shape(chosen_log_ratio=chosen_log_ratio, rejected_log_ratio=rejected_log_ratio)
    sunk = torch.relu(-chosen_log_ratio)
    return -F.logsigmoid(beta * (chosen_log_ratio - rejected_log_ratio - penalty * sunk))


def nca_pair_loss(chosen_log_ratio: Tensor, rejected_log_ratio: Tensor, *, beta: float) -> Tensor:
    """NCA on pairs (arXiv:2402.05369, section 4): `-log sigmoid(r_w) - (log sigmoid(-r_w) + log sigmoid(-r_l)) / 2`."""
    expect_same_shape(chosen_log_ratio=chosen_log_ratio, rejected_log_ratio=rejected_log_ratio)
    chosen, rejected = beta * chosen_log_ratio, beta * rejected_log_ratio
    return -F.logsigmoid(chosen) - 0.5 * F.logsigmoid(-chosen) - 0.5 * F.logsigmoid(-rejected)


def sppo_hard_loss(chosen_log_ratio: Tensor, rejected_log_ratio: Tensor, *, beta: float) -> Tensor:
    """SPPO with hard labels (arXiv:2405.00675, eq. 4.7): `(g_w - 1/(2 beta))^2 + (g_l + 1/(2 beta))^2`.

    The paper's eta is 1 / beta. Under `soft_labels` of the objective, the gradient is that of the paper's soft form.
    """
    expect_same_shape(chosen_log_ratio=chosen_log_ratio, rejected_log_ratio=rejected_log_ratio)
    return (chosen_log_ratio - 0.5 / beta).square() + (rejected_log_ratio + 0.5 / beta).square()


def apo_zero_loss(chosen_log_ratio: Tensor, rejected_log_ratio: Tensor, *, beta: float) -> Tensor:
    """APO-zero (arXiv:2408.06266, eq. 7): `-sigmoid(r_w) + sigmoid(r_l)`; chosen up, rejected down.

    For answers better than what the policy writes. TRL adds the constant 1.
    """
    expect_same_shape(chosen_log_ratio=chosen_log_ratio, rejected_log_ratio=rejected_log_ratio)
    return (beta * rejected_log_ratio).sigmoid() - (beta * chosen_log_ratio).sigmoid()


def apo_down_loss(chosen_log_ratio: Tensor, rejected_log_ratio: Tensor, *, beta: float) -> Tensor:
    """APO-down (arXiv:2408.06266, eq. 8): `sigmoid(r_w) - sigmoid(r_w - r_l)`; both down, rejected more.

    For answers worse than what the policy writes. TRL adds the constant 1.
    """
    expect_same_shape(chosen_log_ratio=chosen_log_ratio, rejected_log_ratio=rejected_log_ratio)
    return (beta * chosen_log_ratio).sigmoid() - (beta * (chosen_log_ratio - rejected_log_ratio)).sigmoid()


def bco_pair_loss(chosen_log_ratio: Tensor, rejected_log_ratio: Tensor, *, beta: float, shift: float) -> Tensor:
    """BCO on pairs (arXiv:2404.04656): `-log sigmoid(r_w - delta) - log sigmoid(delta - r_l)`.

    Args:
        shift: delta, the running mean of the rewards of chosen and rejected answers, reward units, no gradient; see
            `RunningMean`. TRL leaves it out.
    """
    expect_same_shape(chosen_log_ratio=chosen_log_ratio, rejected_log_ratio=rejected_log_ratio)
    return -F.logsigmoid(beta * chosen_log_ratio - shift) - F.logsigmoid(shift - beta * rejected_log_ratio)
