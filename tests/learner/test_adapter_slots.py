from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from learner_kit import NAME, make_pairs, make_spec, rows_of, train, weights

from online_dpo.errors import ModelError, RunDirectoryError
from online_dpo.learner import adapter_slots
from online_dpo.learner.learner import Learner


def test_the_initial_policy_is_the_adapter_that_is_continued(tiny, given):
    learner = Learner(make_spec(tiny, given))
    initial = learner.initial_adapter()
    assert initial is not None
    assert {n: t.tolist() for n, t in weights(initial).items()} == {n: t.tolist() for n, t in weights(given).items()}
    assert initial == learner.policy(0)
    rows = rows_of(make_pairs(3))
    policy, same, base = learner.score(rows, ["policy", initial, None])
    assert policy.token_logps == same.token_logps
    gaps = (torch.tensor(p) - torch.tensor(q) for p, q in zip(policy.token_logps, base.token_logps, strict=True))
    assert torch.cat(list(gaps)).abs().max() > 0.1
    train(learner, learner.reference_logps(make_pairs(4), [initial]))
    assert learner.initial_adapter() == initial != learner.policy(0)


def test_a_new_policy_is_the_base_model_and_its_weights_derive_from_the_seed(tiny):
    torch.manual_seed(99)
    state = torch.get_rng_state()
    learner = Learner(make_spec(tiny))
    assert torch.equal(torch.get_rng_state(), state)
    assert learner.initial_adapter() is None
    policy, base = learner.score(rows_of(make_pairs(3)), ["policy", None])
    assert policy.token_logps == base.token_logps
    torch.manual_seed(1)
    assert Learner(make_spec(tiny)).policy(0) == learner.policy(0)
    assert Learner(make_spec(tiny, seed=8)).policy(0) != learner.policy(0)


def test_adapter_files_name_no_machine_and_are_sorted(tiny, given):
    for spec in (make_spec(tiny), make_spec(tiny, given)):
        config = json.loads(Learner(spec).policy(3).config)
        assert config["base_model_name_or_path"] == NAME
        assert config["target_modules"] == sorted(config["target_modules"])
        assert config["inference_mode"] is True
        assert tiny not in json.dumps(config)


def test_what_does_not_fit_is_refused_and_changes_nothing(tiny, given):
    learner = Learner(make_spec(tiny, given))
    train(learner, learner.reference_logps(make_pairs(4), [given]))
    good = learner.checkpoint()
    narrow = Learner(make_spec(tiny, lora={"r": 2, "alpha": 4}))
    train(narrow, narrow.reference_logps(make_pairs(4), [None]))
    for files, error, message in [
        (narrow.checkpoint(), RunDirectoryError, "which is no parameter of this learner"),
        ({k: v for k, v in good.items() if k != "state.json"}, RunDirectoryError, "lacks state.json"),
        (good | {"optimizer.safetensors": b"short"}, RunDirectoryError, "is not readable"),
        (good | narrow.policy(0).files(), ModelError, r"is \[2, 32\] and \[4, 32\] is needed"),
        (good | {"adapter_model.safetensors": b"short"}, ModelError, "is not readable"),
    ]:
        with pytest.raises(error, match=message):
            learner.restore(files)
        assert learner.checkpoint() == good
    partial = Learner(make_spec(tiny, lora={"r": 4, "alpha": 8, "targets": ["q_proj"]})).policy(0)
    with pytest.raises(ModelError, match=r"the adapter lacks .* names differ"):
        learner.score(rows_of(make_pairs(1)), [partial])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_dora": True}, "version 0, which has use_dora: true; only plain LoRA"),
        ({"init_lora_weights": "pissa"}, 'which has init_lora_weights: "pissa"'),
        ({"init_lora_weights": "lora_ga"}, 'which has init_lora_weights: "lora_ga"'),
        ({"rank_pattern": {"q_proj": 2}}, "which has rank_pattern"),
        ({"r": 2}, "which is no LoRA of rank 2"),
        ({"modules_to_save": ["lm_head"]}, "which has modules_to_save"),
        ({"bias": "all"}, 'which has bias: "all"'),
        ({"peft_type": "IA3"}, "whose peft_type is IA3"),
    ],
)
def test_adapters_beyond_plain_lora_are_refused(tiny, given, change, message):
    config = json.dumps(json.loads(given.config) | change).encode()
    with pytest.raises(ModelError, match=message):
        Learner(make_spec(tiny, replace(given, config=config)))


def test_a_folder_without_a_model_and_unknown_targets_are_refused(tiny, tmp_path):
    with pytest.raises(ModelError, match=r"model\.path is org/tiny, whose config\.json .* cannot use"):
        Learner(make_spec(str(tmp_path)))
    with pytest.raises(ModelError, match=r"LoRA does not fit LlamaForCausalLM.*learner.lora.targets"):
        Learner(make_spec(tiny, lora={"r": 4, "targets": ["c_attn"]}))


def test_the_frozen_slot_is_filled_once_for_the_same_weights(tiny, given, other, monkeypatch):
    """And again after other weights, also after some that do not fit."""
    filled = []
    fill = adapter_slots.fill
    monkeypatch.setattr(adapter_slots, "fill", lambda *args: filled.append(args[2]) or fill(*args))
    rows, learner = rows_of(make_pairs(2)), Learner(make_spec(tiny))
    first, second = (learner.score(rows, [under])[0] for under in (given, other))
    assert first != second and filled == [given, other]
    assert learner.score(rows, [other, replace(other, version=7), given]) == [second, second, first]
    assert filled == [given, other, given]
    with pytest.raises(ModelError, match="is not readable"):
        learner.score(rows, [replace(given, weights=b"nonsense")])
    assert learner.score(rows, [given, other]) == [first, second]
    train(learner, learner.reference_logps(make_pairs(2), [None]), steps=range(1))
    assert learner.score(rows, [other]) == [second]
