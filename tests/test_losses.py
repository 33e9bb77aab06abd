from __future__ import annotations

import math

import pytest
import torch

from online_dpo.errors import ShapeError
from online_dpo.losses import ipo_loss, sigmoid_loss


def evaluate(loss, chosen: list[float], rejected: list[float], dtype=torch.float64):
    """Values, and the gradient of their sum with respect to both gains."""
    w = torch.tensor(chosen, dtype=dtype, requires_grad=True)
    r = torch.tensor(rejected, dtype=dtype, requires_grad=True)
    values = loss(w, r)
    return values.detach().tolist(), [g.tolist() for g in torch.autograd.grad(values.sum(), (w, r))]


# beta 0.5; u = beta (g_w - g_l). Loss = log(1 + e^-u); d/dg_w = -beta / (1 + e^u) = -d/dg_l.
SIGMOID = [
    # g_w, g_l, loss, d/dg_w
    (0.0, 0.0, 0.6931471805599453, -0.25),  # log 2; -0.5 / 2
    (1.0, -1.0, 0.31326168751822286, -0.13447071068499755),  # u = 1: log(1 + 1/e); -0.5 / (1 + e)
    (-3.0, 1.0, 2.1269280110429727, -0.44039853898894116),  # u = -2: log(1 + e^2); -0.5 / (1 + e^-2)
    (2.0, 2.0, 0.6931471805599453, -0.25),  # only the gap counts
]

# beta 0.5: loss = (g_w - g_l - 1)^2; d/dg_w = 2 (g_w - g_l - 1) = -d/dg_l.
IPO = [
    (0.0, 0.0, 1.0, -2.0),
    (1.0, -1.0, 1.0, 2.0),  # past the target gap of 1 nat, the chosen one is pushed down again
    (-3.0, 1.0, 25.0, -10.0),
    (3.0, 2.0, 0.0, 0.0),
]


@pytest.mark.parametrize(("loss", "table"), [(sigmoid_loss, SIGMOID), (ipo_loss, IPO)])
def test_values_and_gradients_match_the_hand_calculation(loss, table):
    chosen, rejected, expected, slope = (list(column) for column in zip(*table, strict=True))
    values, (d_chosen, d_rejected) = evaluate(lambda w, r: loss(w, r, beta=0.5), chosen, rejected)
    assert values == pytest.approx(expected, rel=1e-14, abs=1e-14)
    assert d_chosen == pytest.approx(slope, rel=1e-14, abs=1e-14)
    assert d_rejected == pytest.approx([-s for s in slope], rel=1e-14, abs=1e-14)


def test_beta_scales_the_sigmoid_and_sets_the_target_of_ipo():
    gap = torch.tensor([0.7, -0.2], dtype=torch.float64)
    zero = torch.zeros(2, dtype=torch.float64)
    for beta in (0.01, 0.1, 2.0):
        expected = [math.log(1 + math.exp(-beta * g)) for g in gap.tolist()]
        assert sigmoid_loss(gap, zero, beta=beta).tolist() == pytest.approx(expected, rel=1e-13)
        expected = [(g - 1 / (2 * beta)) ** 2 for g in gap.tolist()]
        assert ipo_loss(gap, zero, beta=beta).tolist() == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize("loss", [sigmoid_loss, ipo_loss])
def test_extreme_margins_stay_finite_in_float32(loss):
    values, gradients = evaluate(
        lambda w, r: loss(w, r, beta=0.1),
        [1e4, -1e4, 1e8, -1e8],
        [-1e4, 1e4, 0.0, 0.0],
        dtype=torch.float32,
    )
    assert all(map(math.isfinite, [*values, *gradients[0], *gradients[1]]))


def test_sigmoid_tails_are_linear_on_the_losing_side_and_zero_on_the_winning_one():
    values, (d_chosen, _) = evaluate(lambda w, r: sigmoid_loss(w, r, beta=0.1), [1e4, -1e4], [0.0, 0.0])
    assert values == [0.0, pytest.approx(1000.0)]
    assert d_chosen == [0.0, pytest.approx(-0.1)]


@pytest.mark.parametrize("loss", [sigmoid_loss, ipo_loss])
def test_gains_of_different_shapes_are_refused_rather_than_broadcast(loss):
    with pytest.raises(ShapeError, match=r"chosen_gain is \[3\], rejected_gain is \[1\]"):
        loss(torch.zeros(3), torch.zeros(1), beta=0.1)
