"""A base in 4 bits: what is refused before Ray starts, and what the learner and the engines are made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from actors import session
from online_dpo.commands.preparing import fitting
from online_dpo.commands.preparing.inputs import prepare
from online_dpo.commands.preparing.specs import engine_spec, learner_spec
from online_dpo.config.loading import load_config
from online_dpo.config.run import RunConfig
from online_dpo.errors import ConfigError
from online_dpo.learner import frozen_models

NF4 = {"path": "embedded:policy", "dtype": "bfloat16", "quantization": "nf4"}


def config(**changes: Any) -> RunConfig:
    judge = {"type": "python", "target": "embedded:gold"}
    sections = {"model": NF4, "prompts": {"source": "embedded:openings/train", "max_tokens": 64}, "judge": judge}
    return load_config({**sections, "sampling": {"max_tokens": 16}, **changes})


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine with a GPU and with every package."""
    monkeypatch.setattr(fitting, "_sees_gpu", lambda: True)
    monkeypatch.setattr(session, "has_gpus", lambda: True)
    monkeypatch.setattr(fitting, "find_spec", lambda name: name)
    return monkeypatch


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"generator": {"weight_push": "merge"}},
            "quantization is nf4 and generator.weight_push is merge; merging",
        ),
        (
            {"model": {**NF4, "dtype": "float32"}},
            "quantization is nf4 and model.dtype is float32; .* set model",
        ),
        ({"generator": {"dtype": "float32"}}, "quantization is nf4 and generator.dtype is float32"),
        ({"model": {**NF4, "quantization": "int8"}}, "model.quantization is .*nf4"),
    ],
)
def test_what_does_not_go_with_4_bits_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(**changes)


def test_without_a_gpu_it_is_refused_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ConfigError, match="nf4, which computes on a GPU only, and this machine has none: set model"):
        prepare(config())
    monkeypatch.setattr(fitting, "find_spec", lambda name: name)
    fitting.check_machine(config(cluster={"address": "first:6379"}))  # whose GPUs are not known yet
    fitting.check_machine(config(model={**NF4, "quantization": None}))


@pytest.mark.parametrize("missing", ["bitsandbytes", "vllm_bnb_plugin"])
def test_a_missing_package_is_named(gpu: pytest.MonkeyPatch, missing: str) -> None:
    gpu.setattr(fitting, "find_spec", lambda name: None if name == missing else name)
    with pytest.raises(ConfigError, match=rf"package {missing.replace('_', '-')} is not .*'online-dpo\[nf4\]'"):
        fitting.check_machine(config())


def test_learner_and_engines_quantise_the_same_weights(gpu: pytest.MonkeyPatch, tmp_path: Path) -> None:
    materials = prepare(config())
    assert materials.config.tolerance == 5e-2  # that of bfloat16, which it computes in
    engine, learner = engine_spec(materials), learner_spec(materials)
    assert (engine.quantization, engine.weight_push, engine.dtype) == ("nf4", "lora", "bfloat16")
    assert (learner.quantization, learner.dtype) == ("nf4", "bfloat16")
    gpu.setattr(session, "has_gpus", lambda: False)  # as in a cluster that was joined
    with pytest.raises(ConfigError, match="on a GPU only, and the cluster has none"):
        engine_spec(materials)

    class Stopped(Exception):
        pass

    seen: dict[str, Any] = {}

    def load_weights(*args: Any, **options: Any) -> None:
        seen.update(options)
        raise Stopped

    gpu.setattr(frozen_models, "load_weights", load_weights)
    with pytest.raises(Stopped):
        frozen_models.load_model(learner.base, dtype="bfloat16", device=torch.device("cuda"), quantization="nf4")
    chosen = seen["quantization_config"]
    assert (chosen.load_in_4bit, chosen.bnb_4bit_quant_type, chosen.bnb_4bit_use_double_quant) == (True, "nf4", True)
    assert chosen.bnb_4bit_compute_dtype == torch.bfloat16 and seen["device_map"] == {"": torch.device("cuda")}
    for device, wanted in (("cuda", {"device_map"}), ("cpu", set())):
        with pytest.raises(Stopped):
            seen.clear()
            frozen_models.load_model(learner.base, dtype="bfloat16", device=torch.device(device))
        assert {"quantization_config", "device_map"} & seen.keys() == wanted
