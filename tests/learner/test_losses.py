"""Every loss against its paper's formula: values and gradients, in 40 digits and independent of torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import mpmath
import pytest
import torch
from mpmath import mpf

from online_dpo.config.objective.pairwise import PairObjective
from online_dpo.config.objective.section import MEMBERS
from online_dpo.errors import ShapeError
from online_dpo.learner import losses

mpmath.mp.dps = 40

B, EPS, LAMBDA, TAU, SHIFT = 0.5, 0.1, 3.0, 0.25, 0.3  # beta and the losses' own parameters


def sig(x: mpf) -> mpf:
    return 1 / (1 + mpmath.exp(-x))


def dpo(w: mpf, r: mpf) -> mpf:
    return -mpmath.log(sig(B * (w - r)))


def q(w: mpf, r: mpf) -> mpf:
    return sig(B * (w - r))


def lrml(u: mpf) -> mpf:
    m = sig(u / TAU)
    return (1 - m) * mpmath.log(1 + mpmath.exp(-u)) + m * mpmath.exp(-u)


Formula = Callable[[Any, Any], Any]
LOSSES: dict[str, tuple[Callable[..., torch.Tensor], Formula]] = {
    # ours, and what the paper says of the log-ratios of the chosen and the rejected answer
    "sigmoid": (partial(losses.sigmoid_loss, beta=B), dpo),
    "simpo": (partial(losses.simpo_loss, beta=B), dpo),
    "ipo": (partial(losses.ipo_loss, beta=B), lambda w, r: (w - r - 1 / (2 * mpf(B))) ** 2),
    "hinge": (partial(losses.hinge_loss, beta=B), lambda w, r: max(mpf(0), 1 - (B * w - B * r))),
    "cdpo": (
        partial(losses.cdpo_loss, beta=B, label_smoothing=EPS),
        lambda w, r: (1 - mpf(EPS)) * dpo(w, r) + EPS * dpo(r, w),
    ),
    "robust": (
        partial(losses.robust_loss, beta=B, label_smoothing=EPS),
        lambda w, r: ((1 - mpf(EPS)) * dpo(w, r) - EPS * dpo(r, w)) / (1 - 2 * mpf(EPS)),
    ),
    "exo_pair": (
        partial(losses.exo_pair_loss, beta=B, label_smoothing=EPS),
        lambda w, r: q(w, r) * mpmath.log(q(w, r) / (1 - mpf(EPS))) + q(r, w) * mpmath.log(q(r, w) / EPS),
    ),
    "discopop": (partial(losses.discopop_loss, beta=B, tau=TAU), lambda w, r: lrml(B * (w - r))),
    "dpop": (
        partial(losses.dpop_loss, beta=B, penalty=LAMBDA),
        lambda w, r: -mpmath.log(sig(B * (w - r - LAMBDA * max(mpf(0), -w)))),
    ),
    "nca_pair": (
        partial(losses.nca_pair_loss, beta=B),
        lambda w, r: -mpmath.log(sig(B * w)) - (mpmath.log(sig(-B * w)) + mpmath.log(sig(-B * r))) / 2,
    ),
    "sppo_hard": (
        partial(losses.sppo_hard_loss, beta=B),
        # eta (P - 1/2) with P = 1 for the winner, 0 for the loser, eta = 1 / beta
        lambda w, r: (w - (1 - mpf(1) / 2) / B) ** 2 + (r - (0 - mpf(1) / 2) / B) ** 2,
    ),
    "apo_zero": (partial(losses.apo_zero_loss, beta=B), lambda w, r: -sig(B * w) + sig(B * r)),
    "apo_down": (partial(losses.apo_down_loss, beta=B), lambda w, r: sig(B * w) - sig(B * w - B * r)),
    "bco_pair": (
        partial(losses.bco_pair_loss, beta=B, shift=SHIFT),
        lambda w, r: -mpmath.log(sig(B * w - SHIFT)) - mpmath.log(sig(-(B * r - SHIFT))),
    ),
}
POINTS = [(0.4, 0.4), (1.0, -1.5), (-3.0, 1.0), (2.0, -2.5), (-0.7, -2.5), (4.0, 5.0), (-6.0, -6.5), (12.0, 3.0)]

# Worked out on paper at g_w = g_l = 0, where the policy is its reference: value, d/dg_w, d/dg_l.
LN2 = 0.6931471805599453
AT_ZERO = {
    "sigmoid": (LN2, -0.25, 0.25),  # -B / 2
    "simpo": (LN2, -0.25, 0.25),
    "ipo": (1.0, -2.0, 2.0),  # (1 / 2B)^2; -2 (1 / 2B)
    "hinge": (1.0, -0.5, 0.5),
    "cdpo": (LN2, -0.2, 0.2),  # -B (0.9 - 0.1) / 2
    "robust": (LN2, -0.3125, 0.3125),  # -B / 2 / (1 - 0.2)
    "exo_pair": (0.5108256237659907, -0.2746530721670274, 0.2746530721670274),  # ln(5/3); -B ln(9) / 4
    "discopop": (0.8465735902799727, -0.2215735902799727, 0.2215735902799727),  # (ln2 + 1)/2; see below
    "nca_pair": (2 * LN2, -0.125, 0.125),
    "sppo_hard": (2.0, -2.0, 2.0),  # 2 (1 / 2B)^2
    "apo_zero": (0.0, -0.125, 0.125),
    "apo_down": (0.0, 0.0, 0.125),
    # log(2 + e^0.3 + e^-0.3); -B / (1 + e^-0.3); B / (1 + e^0.3)
    "bco_pair": (1.4087104889370543, -0.28722125840582946, 0.21277874159417054),
}
# discopop: m = 1/2, m' = 1 / (4 TAU) = 1, d/du = -m' ln2 - (1/2)(1/2) + m' - 1/2 = 0.25 - ln2; times B


def gradients(loss: Callable[..., torch.Tensor], points: Any, dtype: torch.dtype = torch.float64) -> tuple[Any, ...]:
    """Values, and the gradient of their sum with respect to both arguments."""
    w, r = (torch.tensor(column, dtype=dtype, requires_grad=True) for column in zip(*points, strict=True))
    values = loss(w, r)
    return values.tolist(), *(g.tolist() for g in torch.autograd.grad(values.sum(), (w, r), materialize_grads=True))


@pytest.mark.parametrize("name", LOSSES)
def test_values_and_gradients_are_those_of_the_paper(name):
    ours, paper = LOSSES[name]
    values, d_chosen, d_rejected = gradients(ours, POINTS)
    points = [(mpf(w), mpf(r)) for w, r in POINTS]
    assert values == pytest.approx([float(paper(*p)) for p in points], rel=1e-13, abs=1e-14)
    assert d_chosen == pytest.approx([float(mpmath.diff(paper, p, (1, 0))) for p in points], rel=1e-12, abs=1e-14)
    assert d_rejected == pytest.approx([float(mpmath.diff(paper, p, (0, 1))) for p in points], rel=1e-12, abs=1e-14)


@pytest.mark.parametrize("name", AT_ZERO)
def test_a_policy_that_is_its_reference_has_the_loss_worked_out_on_paper(name):
    (value,), (d_chosen,), (d_rejected,) = gradients(LOSSES[name][0], [(0.0, 0.0)])
    assert (value, d_chosen, d_rejected) == pytest.approx(AT_ZERO[name], rel=1e-14, abs=1e-15)


def test_the_tables_hold_every_pairwise_loss():
    pairwise = {name for name, member in MEMBERS.items() if issubclass(member, PairObjective)}
    assert LOSSES.keys() == pairwise - {"aot"}
    assert AT_ZERO.keys() == LOSSES.keys() - {"dpop"}, "which has a kink there"


def test_at_their_kinks_the_flat_side_counts():
    assert gradients(LOSSES["hinge"][0], [(2.0, 0.0)]) == ([0.0], [0.0], [0.0])
    _, d_chosen, _ = gradients(LOSSES["dpop"][0], [(0.0, 0.0), (-1e-9, 0.0)])
    assert d_chosen == pytest.approx([-0.25, -0.25 * (1 + LAMBDA)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", LOSSES)
def test_extreme_gains_stay_finite(name, dtype):
    """DiscoPOP's factors are 0 and infinity there; the naive product is not a number."""
    far = [(1e4, -1e4), (-1e4, 1e4), (1e8, 0.0), (-1e8, 0.0), (0.0, 1e8), (0.0, -1e8)]
    assert all(math.isfinite(x) for column in gradients(LOSSES[name][0], far, dtype) for x in column)


@pytest.mark.parametrize("name", LOSSES)
def test_gains_of_different_shapes_are_refused_rather_than_broadcast(name):
    with pytest.raises(ShapeError, match=r"is \[3\], .* is \[1\]"):
        LOSSES[name][0](torch.zeros(3), torch.zeros(1))


DIVERGENCES: dict[str, tuple[float | None, Callable[[Any], Any]]] = {
    # alpha, and f of the f-divergence from the policy to its reference
    "reverse_kl": (None, lambda u: u * mpmath.log(u)),
    "forward_kl": (None, lambda u: -mpmath.log(u)),
    "js": (None, lambda u: u * mpmath.log(u) - (u + 1) * mpmath.log((u + 1) / 2)),
    "alpha": (
        0.3,
        lambda u: (u ** (1 - mpf("0.3")) - (1 - mpf("0.3")) * u - mpf("0.3")) / (mpf("0.3") * (mpf("0.3") - 1)),
    ),
}


@pytest.mark.parametrize("name", DIVERGENCES)
def test_scores_are_the_derivative_of_the_divergence_up_to_its_value_at_one(name):
    alpha, f = DIVERGENCES[name]
    log_ratios = [-4.0, -0.5, 0.0, 0.3, 5.0]
    tensor = torch.tensor(log_ratios, dtype=torch.float64, requires_grad=True)
    found = losses.divergence_score(tensor, divergence=name, alpha=alpha)
    (slope,) = torch.autograd.grad(found.sum(), tensor)

    def expected(log_ratio: mpf) -> mpf:
        return mpmath.diff(f, mpmath.exp(log_ratio)) - mpmath.diff(f, mpf(1))

    assert found.tolist() == pytest.approx([float(expected(mpf(g))) for g in log_ratios], rel=1e-12, abs=1e-13)
    assert slope.tolist() == pytest.approx([float(mpmath.diff(expected, mpf(g))) for g in log_ratios], rel=1e-10)


def test_alpha_divergences_end_in_reverse_and_forward_kl():
    log_ratios = torch.linspace(-2.0, 2.0, 9, dtype=torch.float64)
    for alpha, end in ((1e-7, "reverse_kl"), (1 - 1e-7, "forward_kl")):
        found = losses.divergence_score(log_ratios, divergence="alpha", alpha=alpha)
        torch.testing.assert_close(
            found, losses.divergence_score(log_ratios, divergence=end, alpha=None), atol=2e-6, rtol=0
        )


@pytest.mark.parametrize("name", DIVERGENCES)
def test_beyond_what_an_exponential_can_hold_scores_go_on_along_the_tangent(name):
    score = partial(losses.divergence_score, divergence=name, alpha=DIVERGENCES[name][0])
    values, d_chosen, d_rejected = gradients(
        lambda w, r: losses.sigmoid_loss(score(w), score(r), beta=0.1), [(-2000.0, 0.0), (0.0, -2000.0)]
    )
    assert all(map(math.isfinite, [*values, *d_chosen, *d_rejected]))
    assert d_chosen[0] < 0.0, "a chosen answer that sank is still pulled up"


# Sorted, 1 2 3 meet 0.5 1 2.5: gaps 0.5, 1 and 0.5.
LEFT, RIGHT, GAPS, PARTNERS = [3.0, 1.0, 2.0], [0.5, 2.5, 1.0], [0.5, 0.5, 1.0], [1, 0, 2]


@pytest.mark.parametrize("eps", [0.0, EPS])
def test_aot_compares_the_sorted_sides(eps):
    """Each gap is counted at the item on the left, and pulls at its partner on the right."""
    loss = partial(losses.aot_loss, beta=B, label_smoothing=eps)
    values, d_left, d_right = gradients(loss, list(zip(LEFT, RIGHT, strict=True)))
    expected = [(1 - eps) * math.log(1 + math.exp(-B * g)) + eps * math.log(1 + math.exp(B * g)) for g in GAPS]
    slopes = [-B * (1 - eps) / (1 + math.exp(B * g)) + eps * B / (1 + math.exp(-B * g)) for g in GAPS]
    assert values == pytest.approx(expected, rel=1e-14)
    assert d_left == pytest.approx(slopes, rel=1e-14)
    assert [d_right[partner] for partner in PARTNERS] == pytest.approx([-s for s in slopes], rel=1e-14)


def test_aot_does_not_depend_on_who_is_paired_with_whom():
    total = sum(
        gradients(partial(losses.aot_loss, beta=B, label_smoothing=0.0), list(zip(LEFT, RIGHT, strict=True)))[0]
    )
    for other in ([2.5, 0.5, 1.0], [1.0, 2.5, 0.5]):
        points = list(zip(LEFT, other, strict=True))
        assert sum(gradients(partial(losses.aot_loss, beta=B, label_smoothing=0.0), points)[0]) == pytest.approx(total)


def test_kto_by_hand():
    """lambda (1 - sigmoid(beta (g - z))) for desirable answers, the reverse sign for the others; z is a constant."""
    log_ratios = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64, requires_grad=True)
    z = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    desirable = torch.tensor([True, True, False, False])
    found = losses.kto_loss(log_ratios, desirable, kl=z, beta=B, desirable_weight=1.2, undesirable_weight=0.7)
    slopes, none = torch.autograd.grad(found.sum(), (log_ratios, z), allow_unused=True)

    def value(g: mpf, wanted: bool) -> mpf:
        return mpf("1.2") * (1 - sig(B * (g - mpf("0.8")))) if wanted else mpf("0.7") * (1 - sig(B * (mpf("0.8") - g)))

    points = list(zip([mpf(g) for g in log_ratios.tolist()], desirable.tolist(), strict=True))
    assert found.tolist() == pytest.approx([float(value(*p)) for p in points], rel=1e-14)
    assert slopes.tolist() == pytest.approx(
        [float(mpmath.diff(partial(lambda wanted, g: value(g, wanted), wanted), g)) for g, wanted in points], rel=1e-12
    )
    assert none is None


def test_the_kl_estimate_is_the_mean_of_mismatched_gains_and_never_negative():
    log_ratios = torch.tensor([2.0, -0.5, 0.3], requires_grad=True)
    assert losses.kl_estimate(log_ratios).item() == pytest.approx(0.6)
    assert not losses.kl_estimate(log_ratios).requires_grad
    assert losses.kl_estimate(-log_ratios).item() == 0.0
    assert losses.kl_estimate(log_ratios[:0]).item() == 0.0


def test_the_running_mean_counts_every_batch_once():
    mean = losses.RunningMean()
    for value in (1.0, 4.0, -2.0):
        mean = mean.updated(value)
    assert (mean.mean, mean.num_batches) == (pytest.approx(1.0), 3)
