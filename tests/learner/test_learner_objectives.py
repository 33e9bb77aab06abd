"""Every objective through the learner: against an independent computation, over micro-batches, in checkpoints."""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from learner_kit import (
    captured_gradients,
    make_pairs,
    make_spec,
    plain_peft,
    slow_token_logps,
    train,
    with_dropout,
)
from objective_kit import OBJECTIVES, items_for, ready, section
from torch import Tensor

from online_dpo.config.objective.pairwise import PairObjective
from online_dpo.config.objective.section import MEMBERS
from online_dpo.errors import TrainingError
from online_dpo.learner.items import LABELLED, PAIRS, kind_of
from online_dpo.learner.learner import Learner
from online_dpo.pairing.unpairing import unpair
from online_dpo.types import Demonstration, Labelled, Pair

BETA = 0.1
LN2 = math.log(2.0)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_micro_batches_change_no_gradient(tiny, given, other, name):
    """DESIGN invariant 7: the same batch whole, in several pieces, and item by item."""
    objective = OBJECTIVES[name]
    results, figures = [], []
    for budget in (10_000, 60, 1):
        learner = Learner(make_spec(tiny, given, batch_pairs=14, micro_batch_tokens=budget, objective=objective))
        learner.model.double()
        items = ready(learner, items_for(objective, 7), other)
        results.append(captured_gradients(learner, items))
        figures.append(learner.checkpoint()["state.json"])
    assert all(gradient.abs().max() > 0 for gradient in results[0].values())
    for gradients in results[1:]:
        assert gradients.keys() == results[0].keys()
        for key, gradient in gradients.items():
            torch.testing.assert_close(gradient, results[0][key], rtol=1e-10, atol=1e-11)


# At the first step, with the policy as its own reference and the config's defaults: worked out on paper.
FIRST_LOSS = {
    "sigmoid": LN2,
    "ipo": 25.0,  # (1 / 2 beta)^2
    "hinge": 1.0,
    "cdpo": LN2,
    "robust": LN2,
    "dpop": LN2,
    "exo_pair": -LN2 - 0.5 * math.log(1e-3 * (1 - 1e-3)),
    "nca_pair": 2 * LN2,
    "sppo_hard": 50.0,  # 2 (1 / 2 beta)^2
    "apo_zero": 0.0,
    "apo_down": 0.0,
    "aot": LN2,
    "aot unpaired": LN2,
    "discopop": (LN2 + 1) / 2,
    "bco_pair": 2 * LN2,
    "kto": 0.5,
}


@pytest.mark.parametrize("name", FIRST_LOSS)
def test_the_first_loss_of_a_policy_that_is_its_reference(tiny, given, name):
    objective = OBJECTIVES[name]
    learner = Learner(make_spec(tiny, given, batch_pairs=16, micro_batch_tokens=80, objective=objective))
    (figures,) = train(learner, ready(learner, items_for(objective, 8), learner.initial_adapter()))
    assert figures["loss"] == pytest.approx(FIRST_LOSS[name], rel=1e-5, abs=1e-5)
    assert figures["reward_margin"] == pytest.approx(0.0, abs=1e-5)
    assert figures["beta"] == BETA
    assert figures["grad_norm"] > 1e-3
    assert figures.keys() >= {
        "chosen_logps",
        "rejected_logps",
        "chosen_log_ratio",
        "rejected_log_ratio",
        "clipped",
        "num_tokens",
    }


def logistic(gap: Tensor) -> Tensor:
    return torch.log(1 + torch.exp(-BETA * gap))


def sorted_logistic(left: Tensor, right: Tensor) -> Tensor:
    return logistic(left.sort().values - right.sort().values)


def bco(log_ratios: Tensor) -> Tensor:
    delta = (BETA * log_ratios).detach().mean()
    return torch.log(1 + torch.exp(delta - BETA * log_ratios[0])) + torch.log(
        1 + torch.exp(BETA * log_ratios[1] - delta)
    )


FORMULAS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    # of [2, P] summed log-probs under policy and reference
    "sigmoid": lambda p, r: logistic((p - r)[0] - (p - r)[1]),
    "ipo": lambda p, r: ((p - r)[0] - (p - r)[1] - 1 / (2 * BETA)) ** 2,
    "aot": lambda p, r: sorted_logistic(p[0] - p[1], r[0] - r[1]),
    "aot unpaired": lambda p, r: sorted_logistic((p - r)[0], (p - r)[1]),
    "bco_pair": lambda p, r: bco(p - r),
}


def compare_with(learner: Learner, items: list[Any], loss: Tensor, policy: Any) -> dict[str, float]:
    """One step whose loss and gradient are those of an independent float64 graph; the gradient clipped to half."""
    loss.backward()
    expected = {n: p.grad for n, p in policy.named_parameters() if p.requires_grad}
    norm = math.sqrt(sum(float(g.square().sum()) for g in expected.values()))
    learner.spec = replace(learner.spec, learner=learner.spec.learner.model_copy(update={"max_grad_norm": norm / 2}))
    found: dict[str, Tensor] = {}
    learner.optimizer.register_step_pre_hook(
        lambda *_: found.update({n: p.grad.clone() for n, p in learner.model.named_parameters() if p.requires_grad})
    )
    (figures,) = train(learner, items)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name].double(), gradient / 2, rtol=1e-4, atol=1e-5 * norm)
    assert figures["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert figures["grad_norm"] == pytest.approx(norm, rel=1e-4)
    assert figures["clipped"] == 1.0
    return figures


def slow_sums(model: Any, rows: list[Any]) -> Tensor:
    return torch.stack([slow_token_logps(model, row.prompt_ids, row.completion_ids).sum() for row in rows])


@pytest.mark.parametrize("name", FORMULAS)
def test_a_step_on_pairs_is_that_of_an_independent_computation(tiny, given, other, tmp_path, name):
    """Log-probs, reference, formula and gradient in one float64 graph, one unpadded sequence at a time."""
    weighted = not name.startswith("aot")
    pairs = [replace(pair, weight=0.5 + 0.25 * i if weighted else 1.0) for i, pair in enumerate(make_pairs(6))]
    policy = plain_peft(tiny, given, tmp_path / "policy", dtype=torch.float64, train=True)
    reference = plain_peft(tiny, other, tmp_path / "reference", dtype=torch.float64)
    rows = [row for pair in pairs for row in PAIRS.scored_rows(pair)]
    p = slow_sums(policy, rows).reshape(-1, 2).T
    with torch.no_grad():
        r = slow_sums(reference, rows).reshape(-1, 2).T
    loss = (FORMULAS[name](p, r) * torch.tensor([pair.weight for pair in pairs], dtype=torch.float64)).mean()

    spec = make_spec(tiny, given, batch_pairs=6, micro_batch_tokens=60, objective=OBJECTIVES[name])
    learner = Learner(spec)
    figures = compare_with(learner, learner.reference_logps(pairs, [other]), loss, policy)
    log_ratios, gaps = (p - r).detach(), (p - r).detach().diff(dim=0)[0]
    assert figures["chosen_log_ratio"] == pytest.approx(log_ratios[0].mean().item(), abs=1e-5)
    assert figures["rejected_log_ratio"] == pytest.approx(log_ratios[1].mean().item(), abs=1e-5)
    assert figures["chosen_logps"] == pytest.approx(p[0].mean().item(), rel=1e-5)
    assert figures["rejected_logps"] == pytest.approx(p[1].mean().item(), rel=1e-5)
    assert figures["reward_margin"] == pytest.approx(-BETA * gaps.mean().item(), abs=1e-5)
    assert figures["reward_accuracy"] == (gaps < 0).double().mean().item()
    assert (figures["num_pairs"], figures["lr"], figures["skipped"]) == (6.0, 1e-2, 0.0)
    assert figures["num_tokens"] == sum(len(row.completion_ids) for row in rows)


@pytest.mark.parametrize("swap", [False, True], ids=["KL above zero", "KL cut at zero"])
def test_a_step_on_labelled_answers_is_that_of_an_independent_computation(tiny, given, other, tmp_path, swap):
    items = [replace(item, weight=1.0 + 0.2 * i) for i, item in enumerate(unpair(make_pairs(4)))]
    adapters = (other, given) if swap else (given, other)
    policy = plain_peft(tiny, adapters[0], tmp_path / "policy", dtype=torch.float64, train=True)
    reference = plain_peft(tiny, adapters[1], tmp_path / "reference", dtype=torch.float64)
    own, mismatched = ([LABELLED.scored_rows(item)[k] for item in items] for k in (0, 1))
    with torch.no_grad():
        kl = (slow_sums(policy, mismatched) - slow_sums(reference, mismatched)).mean().clamp(min=0.0)
        r = slow_sums(reference, own)
    p = slow_sums(policy, own)
    desirable = torch.tensor([item.desirable for item in items])
    values = torch.where(desirable, 1.3 * F.sigmoid(BETA * (kl - p + r)), 0.8 * F.sigmoid(BETA * (p - r - kl)))
    loss = (values * torch.tensor([item.weight for item in items], dtype=torch.float64)).mean()

    objective = section("kto", desirable_weight=1.3, undesirable_weight=0.8)
    learner = Learner(make_spec(tiny, adapters[0], batch_pairs=8, micro_batch_tokens=40, objective=objective))
    figures = compare_with(learner, learner.reference_logps(items, [adapters[1]]), loss, policy)
    log_ratios = (p - r).detach()
    assert figures["kl"] == pytest.approx(kl.item(), abs=1e-5)
    assert figures["chosen_log_ratio"] == pytest.approx(log_ratios[desirable].mean().item(), abs=1e-5)
    assert figures["rejected_logps"] == pytest.approx(p[~desirable].mean().item(), rel=1e-5)
    margin = BETA * (log_ratios[desirable].mean() - log_ratios[~desirable].mean())
    assert figures["reward_margin"] == pytest.approx(margin.item(), abs=1e-5)
    right = torch.where(desirable, log_ratios > kl, log_ratios < kl)
    assert figures["reward_accuracy"] == pytest.approx(right.double().mean().item())
    assert figures["num_items"] == 8.0 and figures["num_tokens"] == sum(len(row.completion_ids) for row in own)


def test_a_mismatched_answer_without_a_finite_gain_is_told_from_the_others(tiny, given):
    learner = Learner(make_spec(tiny, given, batch_pairs=8, objective=section("kto")))
    items = learner.reference_logps(unpair(make_pairs(4)), [given])
    items[3] = replace(items[3], kl_ref_logps=-math.inf)
    learner.begin_round(0, items)
    figures = learner.step(0)
    assert (figures["skipped"], figures["bad_value"], figures["bad_ids"]) == (1.0, "KL estimate", ["p1"])


def test_one_of_the_two_cases_above_has_a_kl_above_zero_and_one_has_not(tiny, given, other):
    items = unpair(make_pairs(4))
    learner = Learner(make_spec(tiny, given, objective=section("kto")))
    found = [learner.reference_logps(items, [adapter]) for adapter in (given, other)]
    gaps = [a.kl_ref_logps - b.kl_ref_logps for a, b in zip(*found, strict=True)]
    assert abs(sum(gaps)) > 0.1


def test_simpo_needs_no_reference_and_reports_no_log_ratios(tiny, given):
    learner = Learner(make_spec(tiny, given, batch_pairs=8, objective=section("simpo")))
    (figures,) = train(learner, make_pairs(8))
    assert math.isfinite(figures["loss"]) and figures["beta"] == 2.0
    assert not {"chosen_log_ratio", "rejected_log_ratio"} & figures.keys()
    assert figures["reward_margin"] != 0.0


def test_both_passes_of_a_coupled_loss_see_the_same_dropout(tiny, given, monkeypatch):
    spec = make_spec(tiny, with_dropout(given, 0.5), batch_pairs=7, micro_batch_tokens=60, objective=section("aot"))
    learner = Learner(spec)
    pairs = learner.reference_logps(make_pairs(7), [given])
    seen: list[list[float]] = []
    forward = learner._token_logps

    def recorded(*args: Any, **options: Any) -> Any:
        scored = forward(*args, **options)
        seen.append([row.sum().item() for row in scored.logps])
        return scored

    monkeypatch.setattr(learner, "_token_logps", recorded)
    train(learner, pairs)
    half = len(seen) // 2
    assert half > 2 and seen[:half] == seen[half:]


def test_bco_s_mean_is_kept_in_checkpoints_and_begins_anew_with_a_round(tiny, given, other):
    spec = make_spec(tiny, given, batch_pairs=2, objective=section("bco_pair"))
    straight = Learner(spec)
    pairs = straight.reference_logps(make_pairs(8), [other])
    expected = train(straight, pairs, 0) + train(straight, pairs, 1)
    assert len({figures["bco_shift"] for figures in expected}) == 8
    first = Learner(spec)
    found = train(first, pairs, 0, range(3))
    files = first.checkpoint()
    assert json.loads(files["state.json"])["state"][0]["num_batches"] == 3
    second = Learner(pickle.loads(pickle.dumps(spec)))
    second.restore(files)
    found += train(second, pairs, 0, range(3, 4)) + train(second, pairs, 1)
    assert found == expected
    fourth = expected[4]  # its own mean reward: there is no other batch of the round before it
    assert fourth["bco_shift"] == pytest.approx(BETA * (fourth["chosen_log_ratio"] + fourth["rejected_log_ratio"]) / 2)


def test_beta_follows_its_schedule_and_the_round_s_factor(tiny, given):
    beta = {"type": "cosine", "start": 0.4, "end": 0.2}
    learner = Learner(make_spec(tiny, given, batch_pairs=4, rounds=2, objective=section("sigmoid", beta=beta)))
    pairs = learner.reference_logps(make_pairs(8), [given])
    found = []
    for index, factor in ((0, 1.0), (1, 3.0)):
        count = learner.begin_round(index, pairs, factor)
        found += [learner.step(step)["beta"] for step in range(count)]
    shape = [0.2 + 0.1 * (1 + math.cos(math.pi * position)) for position in (0.0, 0.25, 0.5, 0.75)]
    assert found == pytest.approx([shape[0], shape[1], 3 * shape[2], 3 * shape[3]])


def test_a_reference_of_several_policies_is_their_mean_log_prob(tiny, given, other):
    learner = Learner(make_spec(tiny, given))
    pairs, items = make_pairs(3), unpair(make_pairs(3))
    one, two, both = (learner.reference_logps(pairs, r) for r in ([other], [None], [other, None]))
    for a, b, c in zip(one, two, both, strict=True):
        for field in ("chosen_ref_logps", "rejected_ref_logps", "chosen_ref_tail_logps", "rejected_ref_tail_logps"):
            assert getattr(c, field) == pytest.approx((getattr(a, field) + getattr(b, field)) / 2)
        tails = {len(a.chosen.token_ids): a.chosen_ref_tail_logps, len(a.rejected.token_ids): a.rejected_ref_tail_logps}
        assert tails[a.shared_length] == 0.0
    rows = [row for pair in pairs for row in PAIRS.scored_rows(pair)]
    for pair, scored in zip(
        one, zip(*[iter(learner.score(rows, [other])[0].token_logps)] * 2, strict=True), strict=True
    ):
        assert pair.chosen_ref_tail_logps == pytest.approx(sum(scored[0][pair.shared_length :]), abs=1e-5)
        assert pair.rejected_ref_logps == pytest.approx(sum(scored[1]), abs=1e-5)
    found = learner.reference_logps(items, [other])
    assert [item.ref_logps for item in found[::2]] == pytest.approx([pair.chosen_ref_logps for pair in one])
    assert all(item.kl_ref_logps is not None for item in found)
    assert learner.reference_logps(pairs, []) == pairs


@pytest.mark.parametrize("layout", ["shared", "separate"])
@pytest.mark.parametrize("name", ["sigmoid", "aot", "bco_pair", "kto", "sft", "sum"])
def test_the_entropy_bonus_is_the_mean_over_the_batch_s_trained_tokens(tiny, given, other, tmp_path, name, layout):
    """What it adds to loss and gradient, against autograd over one unpadded sequence at a time. Would catch a mean of
    means, prompt tokens that count, a pair's weight on the bonus, and demonstrations' untrained tokens."""
    found, weight = {}, 0.7
    for added in (0.0, weight):
        objective = OBJECTIVES[name].model_copy(update={"entropy_weight": added})
        sizes = {"batch_pairs": 14, "micro_batch_tokens": 60, "max_grad_norm": 1e9}
        spec = make_spec(tiny, given, objective=objective, layout=layout, **sizes)
        learner = Learner(spec)
        learner.model.double()
        items = [replace(i, weight=3.0) if name == "sigmoid" else i for i in items_for(objective, 4)]
        figures, gradients, ready_items = {}, {}, ready(learner, items, other)
        take = learner.step
        learner.step = lambda step, take=take, figures=figures: figures.update(take(step)) or figures
        gradients.update(captured_gradients(learner, ready_items))
        found[added] = figures, gradients
    model, entropies = plain_peft(tiny, given, tmp_path, dtype=torch.float64, train=True), []
    kind = kind_of(items[0])
    for item in items:
        for row in kind.trained_rows(item):
            decoder = torch.tensor([[*row.prompt_ids, *row.completion_ids]])
            logits = model(decoder).logits[0, len(row.prompt_ids) - 1 : -1]
            flags = torch.tensor(item.trained) if isinstance(item, Demonstration) else slice(None)
            entropies.append(torch.distributions.Categorical(logits=logits).entropy()[flags])
    mean = torch.cat(entropies).mean()
    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    expected = dict(zip(named, torch.autograd.grad(mean, list(named.values())), strict=True))
    (plain, without), (figures, gradients) = found[0.0], found[weight]
    assert "entropy" not in plain
    assert figures["entropy"] == pytest.approx(mean.item(), rel=1e-9)
    assert figures["entropy_bonus"] == pytest.approx(weight * mean.item(), rel=1e-9)
    assert figures["loss"] == pytest.approx(plain["loss"] - weight * mean.item(), rel=1e-9)
    for key, gradient in gradients.items():  # the model's norms round gradients to float32
        torch.testing.assert_close(gradient - without[key], -weight * expected[key], rtol=1e-3, atol=3e-6)


def test_entropy_is_no_part_of_one_term():
    term = {"objective": {"type": "sigmoid", "entropy_weight": 0.1}}
    with pytest.raises(ValueError, match=r"has entropy_weight 0\.1, and the policy's entropy is no part of one term"):
        section("sum", terms=[term])


def test_items_of_the_wrong_kind_are_refused(tiny, given):
    for objective, items, kind in (("kto", make_pairs(2), "Pair"), ("sigmoid", unpair(make_pairs(2)), "Labelled")):
        learner = Learner(make_spec(tiny, given, objective=section(objective)))
        with pytest.raises(TrainingError, match=f"objective.type is {objective}, which does not train on a {kind}"):
            learner.begin_round(0, items)


def test_the_tables_hold_every_objective():
    pairwise = {name for name, member in MEMBERS.items() if issubclass(member, PairObjective)}
    assert OBJECTIVES.keys() >= MEMBERS.keys()
    assert FIRST_LOSS.keys() >= pairwise - {"simpo"} | {"kto"}
    assert {Pair, Labelled, Demonstration} == {type(items_for(OBJECTIVES[name], 1)[0]) for name in OBJECTIVES}
