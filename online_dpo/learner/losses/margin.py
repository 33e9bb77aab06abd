"""Losses that depend only on the difference of two log-ratios, and the scores that other divergences use instead.

All are pure functions `[P] -> [P]` that know no model and reduce nothing: weights, micro-batches and the mean over the
global batch belong to the learner. `g_w` and `g_l` stand for the log-ratios of the chosen and the rejected answer.
Arguments that all losses share:

- `chosen_log_ratio`: `[P]` log pi(y_w|x) - log pi_ref(y_w|x), nats, summed over the completion's tokens unless a
  composition says otherwise (`online_dpo.learner.objectives`).
- `rejected_log_ratio`: `[P]` the same for y_l.
- `beta`: strength of the pull towards the reference; positive. Larger holds the policy closer to it.

All return `[P]` unreduced losses, and raise `ShapeError` where the log-ratios differ in shape.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from online_dpo.learner.losses.shapes import expect_same_shape

EXPONENT_CAP = 50.0
"""Nats beyond which the exponential of a log-ratio is continued by its tangent. Beyond exp(709) float64 has only
infinity, and `0 * inf` is a NaN; the tangent still has a gradient that points the right way."""


def sigmoid_loss(chosen_log_ratio: Tensor, rejected_log_ratio: Tensor, *, beta: float) -> Tensor:
    """DPO (arXiv:2305.18290, eq. 7): `-log sigmoid(u)` with `u = beta (g_w - g_l)`."""
    expect_same_shape(chosen_log_ratio=chosen_log_ratio, rejected_log_ratio=rejected_log_ratio)
    return -F.logsigmoid(beta * (chosen_log_ratio - rejected_log_ratio))


def simpo_loss(chosen_logp: Tensor, rejected_logp: Tensor, *, beta: float) -> Tensor:
    """SimPO (arXiv:2405.14734, eq. 6), its margin gamma aside: DPO's loss of mean log-probs instead of log-ratios.

    Args:
        chosen_logp: `[P]` log pi(y_w|x) / |y_w|, nats per token; there is no reference. The paper's gamma is
            `target_margin` of the objective, which has already taken half of it off this one and added half to the
            other.
        rejected_logp: `[P]` the same for y_l.
        beta: scale of the rewards; the paper's 2 to 2.5 stand beside DPO's 0.1, since these are means over tokens.
    """
    return sigmoid_loss(chosen_logp, rejected_logp, beta=beta)


def ipo_loss(chosen_log_ratio: Tensor, rejected_log_ratio: Tensor, *, beta: float) -> Tensor:
    """IPO (arXiv:2310.12036v2, eq. 17; its tau is beta here): `(g_w - g_l - 1 / (2 beta))^2`, squared nats.

    The log-ratios are sums over tokens, as in the paper. Given log-ratios per token, this is the form that TRL's
    `DPOTrainer` has.
    """
    expect_same_shape(chosen_log_ratio=chosen_log_ratio, rejected_log_ratio=rejected_log_ratio)
    return (chosen_log_ratio - rejected_log_ratio - 1.0 / (2.0 * beta)).square()


def hinge_loss(chosen_log_ratio: Tensor, rejected_log_ratio: Tensor, *, beta: float) -> Tensor:
    """SLiC's hinge (arXiv:2305.10425, eq. 1) on log-ratios, as RSO's hinge-norm (arXiv:2309.06657): `max(0, 1 - u)`.

    A pair whose difference is `1 / beta` nats or more has no gradient.
    """
    expect_same_shape(chosen_log_ratio=chosen_log_ratio, rejected_log_ratio=rejected_log_ratio)
    return torch.relu(1.0 - beta * (chosen_log_ratio - rejected_log_ratio))


def cdpo_loss(chosen_log_ratio: Tensor, rejected_log_ratio: Tensor, *, beta: float, label_smoothing: float) -> Tensor:
    """Conservative DPO (E. Mitchell, "A note on DPO with noisy preferences", 2023): DPO with smoothed preferences.

    `-(1 - eps) log sigmoid(u) - eps log sigmoid(-u)`. It is lowest where the policy prefers the chosen answer with
    probability `1 - eps`, and rises again beyond that.

    Args:
        label_smoothing: eps, the share of pairs whose preference is wrong; below one half.
    """
    expect_same_shape(chosen_log_ratio=chosen_log_ratio, rejected_log_ratio=rejected_log_ratio)
    logits = beta * (chosen_log_ratio - rejected_log_ratio)
    return -(1.0 - label_smoothing) * F.logsigmoid(logits) - label_smoothing * F.logsigmoid(-logits)


def robust_loss(chosen_log_ratio: Tensor, rejected_log_ratio: Tensor, *, beta: float, label_smoothing: float) -> Tensor:
    """Robust DPO (arXiv:2403.00409, section 3.1): estimates DPO's loss on clean preferences from noisy ones, unbiased.

    `(-(1 - eps) log sigmoid(u) + eps log sigmoid(-u)) / (1 - 2 eps)`. It may be negative.

    Args:
        label_smoothing: eps, the share of pairs whose preference is wrong; below one half.
    """
    expect_same_shape(chosen_log_ratio=chosen_log_ratio, rejected_log_ratio=rejected_log_ratio)
    logits = beta * (chosen_log_ratio - rejected_log_ratio)
    debiased = -(1.0 - label_smoothing) * F.logsigmoid(logits) + label_smoothing * F.logsigmoid(-logits)
    return debiased / (1.0 - 2.0 * label_smoothing)


def exo_pair_loss(
    chosen_log_ratio: Tensor, rejected_log_ratio: Tensor, *, beta: float, label_smoothing: float
) -> Tensor:
    """EXO on pairs (arXiv:2402.00856, eq. 16): reverse KL from the policy's choice to the judge's.

    With `q = sigmoid(u)`: `q (log q - log(1 - eps)) + (1 - q) (log(1 - q) - log eps)`.

    Args:
        label_smoothing: eps, the judge's probability of the rejected answer; above zero, where the loss is infinite.
    """
    expect_same_shape(chosen_log_ratio=chosen_log_ratio, rejected_log_ratio=rejected_log_ratio)
    logits = beta * (chosen_log_ratio - rejected_log_ratio)
    chosen = logits.sigmoid() * (F.logsigmoid(logits) - math.log1p(-label_smoothing))
    return chosen + (-logits).sigmoid() * (F.logsigmoid(-logits) - math.log(label_smoothing))


def discopop_loss(chosen_log_ratio: Tensor, rejected_log_ratio: Tensor, *, beta: float, tau: float) -> Tensor:
    """DiscoPOP's log-ratio modulated loss (arXiv:2406.08414, eq. 5): between the logistic and the exponential loss.

    `(1 - m) log(1 + exp(-u)) + m exp(-u)` with `m = sigmoid(u / tau)`. Not convex: it has a dip left of zero.

    Args:
        tau: how sharply it changes from logistic (u < 0) to exponential (u > 0).
    """
    expect_same_shape(chosen_log_ratio=chosen_log_ratio, rejected_log_ratio=rejected_log_ratio)
    logits = beta * (chosen_log_ratio - rejected_log_ratio)
    # m exp(-u) as one exponential: for u far below zero the two factors are 0 and infinity.
    exponential = (F.logsigmoid(logits / tau) - logits).exp()
    return (logits / tau).neg().sigmoid() * -F.logsigmoid(logits) + exponential


def divergence_score(log_ratio: Tensor, *, divergence: str, alpha: float | None) -> Tensor:
    """What takes a log-ratio's place in DPO's loss where the divergence is not reverse KL (arXiv:2309.16240, table 1).

    It is `f'(ratio)` with `ratio = exp(log_ratio)`, up to a constant that cancels between chosen and rejected; zero at
    ratio 1, with slope 1 there (one half for JS).

    Args:
        log_ratio: `[...]` nats.
        divergence: `reverse_kl` (log ratio), `forward_kl` (1 - 1 / ratio), `js` (log(2 ratio / (1 + ratio))), or
            `alpha` ((1 - ratio^-alpha) / alpha).
        alpha: of the alpha-divergence, in (0, 1): its limits are reverse KL (0) and forward KL (1). TRL's coefficient
            is `1 - alpha`.

    Raises:
        ValueError: the divergence is unknown.
    """
    match divergence:
        case "reverse_kl":
            return log_ratio
        case "forward_kl":
            return 1.0 - _capped_exp(-log_ratio)
        case "js":
            return math.log(2.0) + F.logsigmoid(log_ratio)
        case "alpha" if alpha is not None:
            return (1.0 - _capped_exp(-alpha * log_ratio)) / alpha
    raise ValueError(f"divergence is {divergence} with alpha {alpha}; there is no such")


def _capped_exp(exponent: Tensor) -> Tensor:
    """`exp`, continued by its tangent beyond `EXPONENT_CAP`."""
    capped = exponent.clamp(max=EXPONENT_CAP)
    return capped.exp() * (1.0 + (exponent - capped))
