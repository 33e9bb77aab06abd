"""Preference losses: pure functions of per-completion gains, `[P] -> [P]`. No model, no reduction.

The gain of a completion is `g(y) = log pi(y|x) - log pi_ref(y|x)` in nats, summed over the completion's tokens
(DESIGN section 6). Weights, micro-batches and the mean over the global batch belong to the learner.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeAlias

import torch.nn.functional as F
from torch import Tensor

from online_dpo.errors import ShapeError
from online_dpo.objective_config import ObjectiveSection

PairLoss: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""`(chosen_gain [P], rejected_gain [P]) -> [P]`."""


def sigmoid_loss(chosen_gain: Tensor, rejected_gain: Tensor, *, beta: float) -> Tensor:
    """DPO loss, one value per pair (arXiv:2305.18290, eq. 7).

    Args:
        chosen_gain: `[P]` log pi(y_w|x) - log pi_ref(y_w|x), nats per completion.
        rejected_gain: `[P]` the same for y_l.
        beta: strength of the pull towards the reference; positive. Larger holds the policy closer to it.

    Returns:
        `[P]` unreduced losses: the learner owns the mean over the global batch.

    Raises:
        ShapeError: the two gains differ in shape.
    """
    expect_same_shape(chosen_gain=chosen_gain, rejected_gain=rejected_gain)
    return -F.logsigmoid(beta * (chosen_gain - rejected_gain))


def ipo_loss(chosen_gain: Tensor, rejected_gain: Tensor, *, beta: float) -> Tensor:
    """IPO loss, one value per pair (arXiv:2310.12036v2, eq. 17; its tau is beta here).

    The gains are sums over tokens, as in the paper. TRL's `DPOTrainer` averages them over the completion's length.

    Args:
        chosen_gain: `[P]` log pi(y_w|x) - log pi_ref(y_w|x), nats per completion.
        rejected_gain: `[P]` the same for y_l.
        beta: strength of the pull towards the reference; the gap of the gains is drawn to `1 / (2 beta)` nats.

    Returns:
        `[P]` unreduced losses, squared nats.

    Raises:
        ShapeError: the two gains differ in shape.
    """
    expect_same_shape(chosen_gain=chosen_gain, rejected_gain=rejected_gain)
    return (chosen_gain - rejected_gain - 1.0 / (2.0 * beta)).square()


def pair_loss(objective: ObjectiveSection, beta: float) -> PairLoss:
    """The loss that a config's `objective` section names, its parameters bound."""
    return partial(_LOSSES[objective.type], beta=beta)


def expect_same_shape(**tensors: Tensor) -> None:
    """Raise `ShapeError`, naming every tensor, unless all have one shape: broadcasting would hide a wrong pairing."""
    if len({tensor.shape for tensor in tensors.values()}) > 1:
        found = ", ".join(f"{name} is {list(tensor.shape)}" for name, tensor in tensors.items())
        raise ShapeError(f"{found}; both must hold one value per pair")


_LOSSES: dict[str, Callable[..., Tensor]] = {"sigmoid": sigmoid_loss, "ipo": ipo_loss}
