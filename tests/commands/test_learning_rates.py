"""`learner.lr: auto`: the number, where it is recorded, and that a run keeps it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from learner_kit import make_pairs, make_spec
from transformers import LlamaConfig, LlamaForCausalLM

from online_dpo.commands.preparing.inputs import inspect_inputs
from online_dpo.commands.preparing.learning_rates import automatic_lr, keep_recorded_lr, settle_lr
from online_dpo.commands.run import inspect_continuation, portable_yaml
from online_dpo.config.learner import AUTO_LR
from online_dpo.config.loading import load_config
from online_dpo.errors import ConfigError
from online_dpo.learner.learner import Learner
from online_dpo.learner.spec import LearnerSpec
from online_dpo.loop.updates import Tally
from online_dpo.statistics.update_warnings import update_warnings
from online_dpo.store.run_store import RunStore
from online_dpo.types import Adapter

REVIEWS: dict[str, Any] = {
    "model": {"path": "embedded:policy"},
    "prompts": {"source": "embedded:openings/train", "max_tokens": 64},
    "judge": {"type": "reward_model", "path": "embedded:reward"},
}


def test_the_formula_by_hand() -> None:
    assert automatic_lr(hidden_size=256, num_layers=4, alpha=32) == 7.0e-4  # what the embedded policy is run with
    assert automatic_lr(hidden_size=4096, num_layers=36, alpha=32) == 1.5e-5  # 0.36 / (4096 * 6)
    assert automatic_lr(hidden_size=256, num_layers=4, alpha=64) == 3.5e-4
    assert automatic_lr(hidden_size=64, num_layers=2, alpha=16) == 1.4e-3  # the bound, 7e-4, at half the alpha


def test_a_config_that_says_nothing_gets_a_number_for_its_model_and_a_given_number_stays() -> None:
    assert inspect_inputs(load_config(REVIEWS)).config.learner.lr == 7.0e-4
    assert inspect_inputs(load_config(REVIEWS, ["learner.lora.alpha=8"])).config.learner.lr == 2.8e-3
    assert inspect_inputs(load_config(REVIEWS, ["learner.lr=5e-6"])).config.learner.lr == 5e-6


def test_an_adapter_that_is_continued_brings_its_own_alpha() -> None:
    config, model = load_config(REVIEWS), inspect_inputs(load_config(REVIEWS)).model
    adapter = Adapter(version=0, weights=b"", config=json.dumps({"lora_alpha": 16}).encode())
    assert settle_lr(config, model, adapter).learner.lr == 1.4e-3
    with pytest.raises(ConfigError, match=r"learner\.lr is auto.*no number of layers; set a number, such as 5e-5"):
        settle_lr(config, replace(model, num_layers=None), None)


def test_a_run_keeps_the_number_it_began_with(tmp_path: Path) -> None:
    """Also one from before `auto`, whose default was 5e-6, and also when its config file is used again."""
    config = load_config({**REVIEWS, "run": {"dir": str(tmp_path)}})
    old = inspect_inputs(load_config({**REVIEWS, "run": {"dir": str(tmp_path)}}, ["learner.lr=5e-6"])).config
    info: dict[str, Any] = {"sources": {}, "packages": {}}
    info |= {"model_fingerprint": None, "adapter_digest": None, "reference_digest": None}
    assert keep_recorded_lr(config, old).learner.lr == 5e-6
    with (
        RunStore.create(config.run_dir, config_yaml=portable_yaml(old), info=info) as store,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr("online_dpo.commands.run.check_same_inputs", lambda info, inputs: [])
        inputs, notes = inspect_continuation(config, store)
        assert inputs.config.learner.lr == 5e-6 and notes == []
        with pytest.raises(ConfigError, match=r"learner\.lr was 5e-06 and is now 0\.001"):
            inspect_continuation(load_config({**REVIEWS, "run": {"dir": str(tmp_path)}}, ["learner.lr=1e-3"]), store)


def learned(
    folder: Path, *, hidden: int, layers: int, lr: float, steps: int, rank: int = 16
) -> tuple[dict[str, float], LearnerSpec]:
    """Steps on the same eight pairs, with a model of random weights as transformers initialises them."""
    torch.manual_seed(0)
    shape: dict[str, Any] = {"hidden_size": hidden, "intermediate_size": 3 * hidden, "num_hidden_layers": layers}
    heads = {"num_attention_heads": hidden // 16, "num_key_value_heads": hidden // 16}
    LlamaForCausalLM(LlamaConfig(vocab_size=61, tie_word_embeddings=True, **shape, **heads)).save_pretrained(folder)
    lora = {"r": rank, "alpha": 32}
    spec = make_spec(str(folder), lr=lr, batch_pairs=8, epochs=steps, lora=lora)
    learner, tally = Learner(spec), Tally()
    for step in range(learner.begin_round(0, learner.reference_logps(make_pairs(8), (None,)))):
        tally.add(learner.step(step))
    return tally.summary(), spec


def test_the_formula_moves_models_of_other_shapes_and_ranks_about_equally_far_and_the_old_default_moves_none(
    tmp_path: Path,
) -> None:
    shapes = [(32, 2, 16), (128, 2, 16), (64, 8, 16), (64, 8, 4)]
    moved = []
    for number, (hidden, layers, rank) in enumerate(shapes):
        lr = AUTO_LR / hidden / layers**0.5  # without the bound, which all of these would meet
        summary, spec = learned(tmp_path / str(number), hidden=hidden, layers=layers, lr=lr, steps=2, rank=rank)
        assert list(update_warnings(summary, spec.learner)) == []
        moved.append(summary["reward_margin"])
    assert max(moved) < 2.5 * min(moved), moved
    summary, spec = learned(tmp_path / "old", hidden=32, layers=2, lr=5e-6, steps=8)
    [warning] = update_warnings(summary, spec.learner)
    assert "learner.lr is 5e-06, try 0.000" in warning
