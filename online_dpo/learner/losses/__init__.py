"""Every preference loss, to be read beside its paper; `docs/losses.md` has the table and the plots."""

from online_dpo.learner.losses.anchored import (
    apo_down_loss,
    apo_zero_loss,
    bco_pair_loss,
    dpop_loss,
    nca_pair_loss,
    sppo_hard_loss,
)
from online_dpo.learner.losses.batchwise import RunningMean, aot_loss, kl_estimate, kto_loss
from online_dpo.learner.losses.margin import (
    cdpo_loss,
    discopop_loss,
    divergence_score,
    exo_pair_loss,
    hinge_loss,
    ipo_loss,
    robust_loss,
    sigmoid_loss,
    simpo_loss,
)
from online_dpo.learner.losses.shapes import expect_same_shape

__all__ = [
    "RunningMean",
    "aot_loss",
    "apo_down_loss",
    "apo_zero_loss",
    "bco_pair_loss",
    "cdpo_loss",
    "discopop_loss",
    "divergence_score",
    "dpop_loss",
    "exo_pair_loss",
    "expect_same_shape",
    "hinge_loss",
    "ipo_loss",
    "kl_estimate",
    "kto_loss",
    "nca_pair_loss",
    "robust_loss",
    "sigmoid_loss",
    "simpo_loss",
    "sppo_hard_loss",
]
