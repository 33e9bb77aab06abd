from __future__ import annotations

import json
import math
import pickle
from dataclasses import replace

import pytest
import torch
from learner_kit import (
    captured_gradients,
    make_pairs,
    make_spec,
    plain_peft,
    rows_of,
    slow_token_logps,
    train,
    weights,
    with_dropout,
)

from online_dpo.config.objective.section import MEMBERS
from online_dpo.errors import TrainingError
from online_dpo.learner.learner import Learner
from online_dpo.loop.weight_sync import Gap


@pytest.mark.parametrize("start", ["base", "adapter"])
def test_first_step_against_the_policy_itself_has_loss_ln_2(tiny, given, start):
    """DESIGN invariant 4, float32."""
    learner = Learner(make_spec(tiny, given if start == "adapter" else None, batch_pairs=8))
    pairs = learner.reference_logps(make_pairs(8), [learner.initial_adapter()])
    (metrics,) = train(learner, pairs)
    assert metrics["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert metrics["grad_norm"] > 1e-2


def test_first_step_has_loss_ln_2_within_a_measured_bound_in_bf16(tiny, given):
    """Reference and step batched differently, the worst case. Measured over 24 such cases: at most 8e-4."""
    whole = Learner(make_spec(tiny, given, dtype="bfloat16", batch_pairs=8))
    small = Learner(make_spec(tiny, given, dtype="bfloat16", batch_pairs=8, micro_batch_tokens=40))
    for seed in range(3):
        (metrics,) = train(small, whole.reference_logps(make_pairs(8, seed=seed), [given]), steps=range(1))
        assert metrics["loss"] == pytest.approx(math.log(2), abs=2e-3)
        small = Learner(small.spec)
    assert {p.dtype for n, p in small.model.named_parameters() if "lora_" in n} == {torch.float32}
    assert {p.dtype for n, p in small.model.named_parameters() if "lora_" not in n} == {torch.bfloat16}


def test_micro_batches_stay_within_their_token_budget(tiny, given, monkeypatch):
    learner = Learner(make_spec(tiny, given, batch_pairs=7, micro_batch_tokens=60))
    pairs = learner.reference_logps(make_pairs(7), [given])
    sizes: list[tuple[int, int]] = []
    decoder = learner.model.get_base_model().get_decoder()
    hook = decoder.register_forward_pre_hook(
        lambda m, args, kwargs: sizes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    train(learner, pairs)
    hook.remove()
    # Nothing is padded; these prompts are too short to be shared.
    assert sum(tokens for _, tokens in sizes) == sum(len(r.prompt_ids) + len(r.completion_ids) for r in rows_of(pairs))
    assert len(sizes) > 2
    assert all(rows == 1 and tokens <= 60 for rows, tokens in sizes)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_frozen_weights_have_neither_gradients_nor_optimizer_state(tiny, given, checkpointing):
    """And no gradient is worked out for them on the way, in whatever layer they are."""
    spec = make_spec(tiny, given, batch_pairs=8, activation_checkpointing=checkpointing)
    learner = Learner(spec)
    learner.optimizer.zero_grad = lambda **_: None  # keep what the step leaves
    pairs = learner.reference_logps(make_pairs(8), [given])
    before = {name: p.detach().clone() for name, p in learner.model.named_parameters()}
    train(learner, pairs)
    parameters = dict(learner.model.named_parameters())
    adapter = {name for name in parameters if "lora_" in name and ".frozen." not in name}  # that one is a reference
    assert 0 < len(adapter) < len(parameters)
    assert {name for name, p in parameters.items() if p.requires_grad} == adapter
    assert {name for name, p in parameters.items() if p.grad is not None} == adapter
    assert {id(p) for p in learner.optimizer.state} == {id(parameters[name]) for name in adapter}
    numbers = sum(t.numel() for state in learner.optimizer.state.values() for t in state.values())
    assert numbers == sum(2 * parameters[name].numel() + 1 for name in adapter)  # two moments and a step
    changed = {name for name, p in parameters.items() if not torch.equal(p, before[name])}
    assert changed == adapter


def test_a_new_learner_continues_from_a_checkpoint_bit_for_bit(tiny, given):
    """DESIGN invariant 6, with dropout, two epochs, and a schedule that depends on the position."""
    spec = make_spec(
        tiny, with_dropout(given, 0.1), batch_pairs=3, epochs=2, schedule="cosine", warmup_steps=3, weight_decay=0.1
    )

    def ready(learner: Learner):
        return learner.reference_logps(make_pairs(8), [learner.initial_adapter()])

    straight = Learner(spec)
    pairs = ready(straight)
    expected = train(straight, pairs, 0) + train(straight, pairs, 1)
    assert len(expected) == 12

    for stop in (2, 6, 9):  # inside a round, at its end, inside the next one
        first = Learner(spec)
        found = train(first, ready(first), 0, range(min(stop, 6)))
        if stop > 6:
            found += train(first, pairs, 1, range(stop - 6))
        files = first.checkpoint()
        assert sorted(files) == [
            "adapter_config.json", "adapter_model.safetensors", "optimizer.safetensors", "state.json"
        ]  # fmt: skip
        second = Learner(pickle.loads(pickle.dumps(spec)))
        second.restore(files)
        assert second.checkpoint() == files
        if stop < 6:
            found += train(second, pairs, 0, range(stop, 6))
        found += train(second, pairs, 1, range(max(stop - 6, 0), 6))
        assert found == expected
        assert second.policy(2) == straight.policy(2)
        assert second.checkpoint() == straight.checkpoint()


def test_dropout_is_on_in_steps_and_off_in_scores(tiny, given):
    runs = {}
    for dropout in (0.0, 0.5):
        learner = Learner(make_spec(tiny, with_dropout(given, dropout), batch_pairs=8))
        pairs = learner.reference_logps(make_pairs(8), [given])
        runs[dropout] = (pairs, train(learner, pairs)[0]["loss"])
    assert runs[0.0][0] == runs[0.5][0]
    assert abs(runs[0.5][1] - runs[0.0][1]) > 1e-3


def test_scores_under_every_kind_of_weights_match_plain_peft(tiny, given, other, tmp_path):
    learner = Learner(make_spec(tiny, given, micro_batch_tokens=60))
    pairs = make_pairs(5)
    train(learner, learner.reference_logps(pairs, [given]))
    rows = rows_of(pairs)
    scores = learner.score(rows, ["policy", None, other, given])

    trained = plain_peft(tiny, learner.policy(1), tmp_path / "policy", dtype=torch.float64)
    models = [
        trained,
        trained,
        *(plain_peft(tiny, a, tmp_path / a.digest, dtype=torch.float64) for a in (other, given)),
    ]
    for index, (scored, model) in enumerate(zip(scores, models, strict=True)):
        for row, found in zip(rows, scored.token_logps, strict=True):
            with torch.no_grad(), model.disable_adapter() if index == 1 else torch.no_grad():
                expected = slow_token_logps(model, row.prompt_ids, row.completion_ids)
            assert found == pytest.approx(expected.tolist(), abs=2e-5)
    assert [scored.entropies is None for scored in scores] == [False, True, True, True]
    assert [len(e) for e in scores[0].entropies] == [len(row.completion_ids) for row in rows]


@pytest.mark.parametrize(("engine", "is_exact"), [("float32", True), ("bfloat16", False)])
def test_what_engines_are_compared_with_is_as_fine_as_they_are(tiny, given, other, engine, is_exact):
    """Under autocast: of the model's own precision beside a float32 engine, and else as training computes it."""
    learner = Learner(make_spec(tiny, given, autocast="bfloat16", engine_dtype=engine))
    rows = rows_of(make_pairs(5))
    train(learner, learner.reference_logps(make_pairs(5), [given]))
    exact = [scores.token_logps for scores in learner.score(rows, ["policy", other])]
    found = learner.check_logps(rows, ["policy", other])
    gaps = [Gap.between(*both).max for both in zip(found, exact, strict=True)]
    assert (max(gaps) == 0.0) == is_exact
    assert max(gaps) < 0.05


def test_scoring_leaves_training_bitwise_alone(tiny, given, other):
    pairs = make_pairs(9)
    plain, scoring = (Learner(make_spec(tiny, with_dropout(given, 0.1))) for _ in range(2))
    pairs = plain.reference_logps(pairs, [other])
    expected = train(plain, pairs)
    trainable = {n for n, p in scoring.model.named_parameters() if p.requires_grad}
    scoring.begin_round(0, pairs)
    found = []
    for step in range(len(expected)):
        scoring.score(rows_of(pairs), [None, other, "policy", given])
        assert {n for n, p in scoring.model.named_parameters() if p.requires_grad} == trainable
        found.append(scoring.step(step))
    assert found == expected
    assert scoring.checkpoint() == plain.checkpoint()


def test_the_policy_slot_trains_and_nothing_else(tiny, given):
    learner = Learner(make_spec(tiny, given))
    before = {n: p.detach().clone() for n, p in learner.model.named_parameters()}
    gradients = captured_gradients(learner, learner.reference_logps(make_pairs(4), [given]))
    after = dict(learner.model.named_parameters())
    policy = {n for n in before if ".default." in n}
    assert gradients.keys() == policy
    assert len(policy) == 2 * 7 * 2  # A and B of seven linear layers in each of two blocks
    assert {id(p) for g in learner.optimizer.param_groups for p in g["params"]} == {id(after[n]) for n in policy}
    # The frozen slot is overwritten by whatever was last scored, so it is left out here.
    changed = {n for n in before if ".frozen." not in n and not torch.equal(before[n], after[n])}
    assert changed == policy


def test_weight_decay_and_schedule_reach_the_optimizer(tiny, given):
    """One AdamW step by hand: decay, then lr * g / (|g| + eps), since both moments are of one gradient."""
    learner = Learner(make_spec(tiny, given, weight_decay=0.5, schedule="linear", warmup_steps=4, max_grad_norm=1e9))
    before = weights(learner.policy(0))
    pairs = learner.reference_logps(make_pairs(4), [given])
    gradients = captured_gradients(learner, pairs)
    lr = 1e-2 / 4  # the first of four warm-up steps, at the very start of the run
    for name, found in weights(learner.policy(1)).items():
        g = gradients[name.replace(".weight", ".default.weight")]
        expected = before[name] * (1 - lr * 0.5) - lr * g / (g.abs() + 1e-8)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    metrics = train(learner, pairs, round_index=2)
    assert metrics[0]["lr"] == pytest.approx(1e-2 * (1 - 2 / 4) * 2 / 4)


@pytest.mark.parametrize("micro", [64, 10_000])
@pytest.mark.parametrize(("what", "objective"), [("loss", "sigmoid"), ("gradient", "sigmoid"), ("loss", "aot")])
def test_a_step_whose_values_are_not_finite_is_skipped_and_names_the_pairs(tiny, given, what, objective, micro):
    """In a coupled loss one bad pair spoils the whole batch's, and is still told from the others."""
    section = MEMBERS[objective](type=objective)
    learner = Learner(make_spec(tiny, given, batch_pairs=4, micro_batch_tokens=micro, objective=section))
    pairs = learner.reference_logps(make_pairs(12), [given])
    bad = 5
    # Or: a finite loss whose gradient's norm overflows float32.
    poison = {"chosen_ref_logps": math.nan} if what == "loss" else {"weight": 1e38}
    poisoned = [*pairs[:bad], replace(pairs[bad], **poison), *pairs[bad + 1 :]]
    learner.begin_round(3, poisoned)
    fails = next(i for i, batch in enumerate(learner._batches) if bad in batch)
    for step in range(fails):
        assert learner.step(step)["skipped"] == 0.0
    good = learner.checkpoint()
    figures = learner.step(fails)
    assert figures == {
        "skipped": 1.0, "bad_value": what, "bad_ids": ["p5"], "lr": pytest.approx(1e-2), "beta": pytest.approx(0.1)
    }  # fmt: skip
    after = learner.checkpoint()
    assert {n for n in good if good[n] != after[n]} == {"state.json"}
    before, now = (json.loads(files["state.json"]) for files in (good, after))
    assert now == {**before, "next_step": fails + 1}, "a skipped step is no optimizer step"
    for step in range(fails + 1, 3):
        assert math.isfinite(learner.step(step)["grad_norm"])


def test_steps_are_taken_in_order_and_need_a_reference(tiny, given):
    learner = Learner(make_spec(tiny, given))
    with pytest.raises(TrainingError, match="an item of prompt p0 has no reference log-probs"):
        learner.begin_round(0, make_pairs(2))
    assert learner.begin_round(0, learner.reference_logps(make_pairs(9), [given])) == 3
    with pytest.raises(TrainingError, match="step 1 was asked for, but step 0 of 3 is next"):
        learner.step(1)
