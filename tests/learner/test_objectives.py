"""What composes with every pairwise loss, token by token in plain Python; and what states, weights and sums do."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from objective_kit import Drawn, at, draw, evaluate

from online_dpo.config.objective.section import MEMBERS, SumObjective
from online_dpo.errors import TrainingError
from online_dpo.learner.batches import PairBatch
from online_dpo.learner.losses import RunningMean
from online_dpo.learner.objectives import PairwiseObjective

BETA, LAMBDA = 0.3, 5.0


def dpop(w: float, r: float) -> float:
    """Of both log-ratios, so that a margin on the gap alone, or soft labels that negate the gap, would show."""
    return math.log1p(math.exp(-BETA * (w - r - LAMBDA * max(0.0, -w))))


def by_hand(drawn: Drawn, options: dict[str, Any]) -> list[float]:
    """The composed DPO-Positive losses, from the definitions."""
    alpha = options.get("ld_alpha", 1.0)
    pairs, found = drawn.pairs, []
    strengths = {
        "given": [1.0 for _ in pairs],
        "margin": [pair.margin for pair in pairs],
        "confidence": [2 * pair.probability - 1 for pair in pairs],
    }[options.get("pair_weights", "given")]
    for i, pair in enumerate(pairs):
        log_ratios, alignments = [], []
        for row in (2 * i, 2 * i + 1):
            counts = [1.0 if t < pair.shared_length else alpha for t in range(len(drawn.policy[row]))]
            rows = zip(counts, drawn.policy[row], drawn.reference[row], strict=True)
            log_ratio = sum(c * (p - r) for c, p, r in rows)
            log_ratios.append(log_ratio / sum(counts) if options.get("length_normalise") else log_ratio)
            likelier = [p - c for p, c in zip(drawn.policy[row], drawn.collisions[row], strict=True)]
            alignments.append(math.exp(sum(likelier) / len(likelier)))
        half = options.get("target_margin", 0.0) / BETA / 2
        loss = dpop(log_ratios[0] - half, log_ratios[1] + half)
        if options.get("soft_labels"):
            loss = pair.probability * loss + (1 - pair.probability) * dpop(log_ratios[1] - half, log_ratios[0] + half)
        if options.get("wpo"):
            loss *= alignments[0] * alignments[1]
        loss += options.get("nll_weight", 0.0) * -sum(drawn.policy[2 * i]) / len(drawn.policy[2 * i])
        found.append(loss * pair.weight * strengths[i] / (sum(strengths) / len(strengths)))
    return found


COMPOSITIONS: list[dict[str, Any]] = [
    {},
    {"length_normalise": True},
    {"target_margin": 0.7},
    {"nll_weight": 0.4},
    {"pair_weights": "margin"},
    {"pair_weights": "confidence"},
    {"soft_labels": True},
    {"wpo": True},
    {"ld_alpha": 0.3},
    {"ld_alpha": 0.0, "length_normalise": True},
    {
        "length_normalise": True,
        "target_margin": 0.7,
        "nll_weight": 0.4,
        "pair_weights": "margin",
        "soft_labels": True,
        "wpo": True,
        "ld_alpha": 0.3,
    },
]


@pytest.mark.parametrize("options", COMPOSITIONS, ids=lambda options: "+".join(options) or "nothing")
def test_compositions_are_what_they_say_token_by_token(options):
    drawn = draw()
    section = {"type": "dpop", "beta": BETA, "penalty": LAMBDA, **options}
    outcome, gradients = evaluate(drawn, section)
    expected = by_hand(drawn, options)
    assert outcome.loss.tolist() == pytest.approx(expected, rel=1e-12)

    # Central differences of the definition. WPO's weight is a constant of the policy, so it is left as drawn.
    step, rows = 1e-5, drawn.policy
    for row in range(len(rows)):
        for t in range(len(rows[row])):
            means = []
            for sign in (1, -1):
                moved = [[p + sign * step * ((r, u) == (row, t)) for u, p in enumerate(x)] for r, x in enumerate(rows)]
                collisions = drawn.collisions
                if options.get("wpo"):  # moved along, so that the weight stays
                    collisions = [
                        [c + m - p for c, m, p in zip(*column, strict=True)]
                        for column in zip(drawn.collisions, moved, rows, strict=True)
                    ]
                losses = by_hand(replace(drawn, policy=moved, collisions=collisions), options)
                means.append(sum(losses) / len(losses))
            assert gradients[row][t] == pytest.approx((means[0] - means[1]) / (2 * step), rel=1e-6, abs=1e-9)


def test_simpo_is_the_mean_log_probs_gap_less_gamma_and_reads_no_reference():
    drawn = draw()
    outcome, _ = evaluate(drawn, {"type": "simpo", "beta": 2.0, "target_margin": 0.6})
    for i, pair in enumerate(drawn.pairs):
        chosen, rejected = (sum(row) / len(row) for row in drawn.policy[2 * i : 2 * i + 2])
        expected = math.log1p(math.exp(-(2.0 * chosen - 2.0 * rejected - 0.6)))
        assert outcome.loss[i].item() == pytest.approx(pair.weight * expected)
    blank = [replace(pair, chosen_ref_logps=None, rejected_ref_logps=None) for pair in drawn.pairs]
    again, _ = evaluate(replace(drawn, pairs=blank), {"type": "simpo", "beta": 2.0, "target_margin": 0.6})
    assert again.loss.tolist() == outcome.loss.tolist()


def test_f_divergences_take_the_gains_place():
    drawn = draw()
    outcome, _ = evaluate(drawn, {"type": "sigmoid", "beta": BETA, "divergence": "alpha", "alpha": 0.5})
    for i, pair in enumerate(drawn.pairs):
        log_ratios = [sum(drawn.policy[r]) - sum(drawn.reference[r]) for r in (2 * i, 2 * i + 1)]
        chosen, rejected = ((1 - math.exp(-0.5 * log_ratio)) / 0.5 for log_ratio in log_ratios)
        assert outcome.loss[i].item() == pytest.approx(pair.weight * math.log1p(math.exp(-BETA * (chosen - rejected))))
        assert outcome.rewards[:, i].tolist() == pytest.approx([BETA * chosen, BETA * rejected])


@pytest.mark.parametrize("unpaired", [False, True])
def test_aot_sorts_gaps_or_log_ratios(unpaired):
    drawn = draw()
    drawn = replace(drawn, pairs=[replace(pair, weight=1.0) for pair in drawn.pairs])
    outcome, _ = evaluate(drawn, {"type": "aot", "beta": BETA, "unpaired": unpaired, "target_margin": 0.4})
    policy = [sum(row) for row in drawn.policy]
    reference = [sum(row) for row in drawn.reference]
    if unpaired:
        log_ratios = [p - r for p, r in zip(policy, reference, strict=True)]
        left, right = log_ratios[::2], log_ratios[1::2]
    else:
        left = [w - r for w, r in zip(policy[::2], policy[1::2], strict=True)]
        right = [w - r for w, r in zip(reference[::2], reference[1::2], strict=True)]
    gaps = [a - b - 0.4 / BETA for a, b in zip(sorted(left), sorted(right), strict=True)]
    expected = [math.log1p(math.exp(-BETA * gap)) for gap in gaps]
    assert sorted(outcome.loss.tolist()) == pytest.approx(sorted(expected))


def test_a_sum_is_the_weighted_sum_of_its_terms_with_their_own_betas():
    drawn = draw()
    terms = [
        (0.8, {"type": "sigmoid", "beta": 0.1}),
        (2.0, {"type": "bco_pair", "beta": 0.2}),
        (1.0, {"type": "simpo", "nll_weight": 1.0}),
    ]
    outcome, gradients = evaluate(
        drawn, {"type": "sum", "terms": [{"weight": weight, "objective": term} for weight, term in terms]}
    )
    parts = [(weight, *evaluate(drawn, term)) for weight, term in terms]
    assert outcome.loss.tolist() == pytest.approx(sum(w * part.loss for w, part, _ in parts).tolist())
    for row, gradient in enumerate(gradients):
        for t, value in enumerate(gradient):
            assert value == pytest.approx(sum(w * grads[row][t] for w, _, grads in parts), abs=1e-14)
    assert outcome.beta == 0.1 and outcome.rewards.tolist() == parts[0][1].rewards.tolist()
    assert outcome.figures == parts[1][1].figures


def flat_batch(log_ratios: list[tuple[float, float]]) -> PairBatch:
    """One token an answer."""
    logps = torch.tensor(log_ratios, dtype=torch.float64).T
    one, zero = torch.ones(len(log_ratios), dtype=torch.float64), torch.zeros_like(logps)
    return PairBatch(
        logps=logps,
        tail_logps=zero,
        ref_logps=zero,
        ref_tail_logps=zero,
        lengths=zero + 1.0,
        tail_lengths=zero,
        alignment=zero,
        margin=one,
        probability=one,
        weight=one,
        entropy=torch.zeros_like(one),
    )


def test_bco_is_shifted_by_the_mean_reward_of_the_batches_so_far_this_one_included():
    objective = PairwiseObjective(MEMBERS["bco_pair"](type="bco_pair", beta=0.5))  # type: ignore[arg-type]
    first = objective(flat_batch([(3.0, 1.0), (1.0, 1.0)]), at(objective.fresh_state))
    assert first.state == (RunningMean(0.75, 1),)  # 0.5 * (3 + 1 + 1 + 1) / 4
    second = objective(flat_batch([(2.0, -4.0)]), at(first.state))
    shift = (0.75 - 0.5) / 2  # the mean of 0.75 and 0.5 * (2 - 4) / 2
    assert second.figures == {"bco_shift": pytest.approx(shift)}
    expected = math.log1p(math.exp(-(1.0 - shift))) + math.log1p(math.exp(-2.0 - shift))
    assert second.loss.tolist() == pytest.approx([expected])
    plain = PairwiseObjective(MEMBERS["bco_pair"](type="bco_pair", beta=0.5, shift="none"))  # type: ignore[arg-type]
    found = plain(flat_batch([(2.0, -4.0)]), at(plain.fresh_state))
    assert found.loss.tolist() == pytest.approx([math.log1p(math.exp(-1.0)) + math.log1p(math.exp(-2.0))])
    assert objective.is_coupled and not plain.is_coupled and not found.figures


def test_betas_follow_their_schedules_times_the_round_s_factor():
    schedule = {"type": "linear", "start": 0.2, "end": 0.6}
    objective = PairwiseObjective(
        SumObjective.model_validate(
            {
                "type": "sum",
                "terms": [{"objective": {"type": "sigmoid", "beta": schedule}}, {"objective": {"type": "hinge"}}],
            }
        )
    )
    found = objective(flat_batch([(3.0, 1.0)]), at(objective.fresh_state, position=0.25, beta_factor=2.0))
    assert found.beta == pytest.approx(0.6)
    assert found.loss.tolist() == pytest.approx([math.log1p(math.exp(-1.2)) + (1 - 0.2 * 2.0)])


@pytest.mark.parametrize(
    ("section", "changes", "message"),
    [
        (
            {"type": "sigmoid", "soft_labels": True},
            {"margin": None, "probability": None},
            "objective.soft_labels needs",
        ),
        (
            {"type": "ipo", "pair_weights": "margin"},
            {"margin": None, "probability": None},
            "objective.pair_weights margin needs a judge's probability, and the pair of prompt p0 is from a data set",
        ),
        ({"type": "aot"}, {"weight": 2.0}, "the pair of prompt p0 has the weight 2.0"),
    ],
)
def test_what_a_round_s_pairs_cannot_give_is_told_before_training(section, changes, message):
    objective = PairwiseObjective(MEMBERS[section["type"]](**section))  # type: ignore[arg-type]
    with pytest.raises(TrainingError, match=message):
        objective.begin_round([replace(pair, **changes) for pair in draw().pairs])
