"""A tiny model of every family of docs/models.md, against plain transformers + PEFT under eager attention."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from family_kit import FAMILIES, build_family
from learner_kit import captured_gradients, make_pairs, make_spec, rows_of, slow_token_logps
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load, save
from torch.nn.functional import logsigmoid
from transformers import AutoModelForCausalLM, PreTrainedModel

from online_dpo.errors import ModelError
from online_dpo.learner.learner import Learner
from online_dpo.models import loading
from online_dpo.types import Adapter

PAIRS = make_pairs(4)
ROWS = rows_of(PAIRS)


def moved(adapter: Adapter) -> Adapter:
    """The adapter with large random values, far from its base model."""
    generator = torch.Generator().manual_seed(3)
    tensors = {
        name: 0.1 * torch.randn(tensor.shape, generator=generator, dtype=torch.float64).to(tensor.dtype)
        for name, tensor in sorted(load(adapter.weights).items())
    }
    return Adapter(version=0, weights=save(tensors, metadata={"format": "pt"}), config=adapter.config)


def plain(model: Path, adapter: Adapter, folder: Path, *, dtype: torch.dtype) -> Any:
    """The model and an adapter as transformers and PEFT alone load them, attention written out."""
    folder.mkdir()
    for name, content in adapter.files().items():
        (folder / name).write_bytes(content)
    base = AutoModelForCausalLM.from_pretrained(model, dtype=dtype, attn_implementation="eager")
    return PeftModel.from_pretrained(base, str(folder), is_trainable=True).to(dtype).eval()


def by_hand(model: Any) -> tuple[list[torch.Tensor], list[torch.Tensor], dict[str, torch.Tensor]]:
    """Token log-probs of the policy and of the base, and the gradients of DPO's mean loss (arXiv:2305.18290, eq. 7)."""
    with torch.no_grad(), model.disable_adapter():
        reference = [slow_token_logps(model, row.prompt_ids, row.completion_ids) for row in ROWS]
    policy = [slow_token_logps(model, row.prompt_ids, row.completion_ids) for row in ROWS]
    ratios = [ours.double().sum() - theirs.double().sum() for ours, theirs in zip(policy, reference, strict=True)]
    losses = [-logsigmoid(0.1 * (ratios[i] - ratios[i + 1])) for i in range(0, len(ratios), 2)]
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(sum(losses) / len(losses), list(named.values()))
    return [row.detach() for row in policy], reference, dict(zip(named, found, strict=True))


@pytest.fixture
def in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers multiplies experts in groups, which PyTorch has no float64 kernel for."""

    def refuse(model: Any) -> None:
        raise ImportError

    monkeypatch.setattr(PreTrainedModel, "_grouped_mm_can_dispatch", refuse)


@pytest.mark.usefixtures("in_float64")
@pytest.mark.parametrize("family", FAMILIES)
def test_policy_reference_and_gradients_are_those_of_plain_transformers_and_peft(family: str, tmp_path: Path) -> None:
    model = build_family(family, tmp_path / "model")
    adapter = moved(Learner(make_spec(str(model), dtype="float64")).policy(0))
    expected, expected_reference, expected_gradients = by_hand(
        plain(model, adapter, tmp_path / "adapter", dtype=torch.float64)
    )
    learner = Learner(make_spec(str(model), adapter, dtype="float64", max_grad_norm=1e9))
    policy, reference = learner.score(ROWS, ["policy", None])
    for found, wanted in ((policy, expected), (reference, expected_reference)):
        for row, value in zip(found.token_logps, wanted, strict=True):
            # Some models take their norms or rotations in float32 even in float64.
            torch.testing.assert_close(torch.tensor(row, dtype=torch.float64), value.double(), rtol=0, atol=1e-5)
    moved_by = torch.cat(expected) - torch.cat(expected_reference)
    assert moved_by.abs().max() > 0.3
    gradients = captured_gradients(learner, learner.reference_logps(PAIRS, [None]))
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in expected_gradients.items():
        assert (gradients[name] - gradient).norm() < 1e-4 * gradient.norm(), name
    assert max(gradient.norm() for gradient in expected_gradients.values()) > 1e-3


@pytest.mark.parametrize("family", ["Mistral", "Gemma 2", "Gemma 3", "Phi-3"])
def test_padded_rows_in_low_precision_are_those_of_plain_models_under_autocast(family: str, tmp_path: Path) -> None:
    """A float32 model whose rows are padded: its attention got values in bfloat16 and queries in float32, and died."""
    model = build_family(family, tmp_path / "model")
    adapter = moved(Learner(make_spec(str(model))).policy(0))
    exact = by_hand(plain(model, adapter, tmp_path / "float32", dtype=torch.float32))
    low = plain(model, adapter, tmp_path / "bfloat16", dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = by_hand(low)

    learner = Learner(make_spec(str(model), adapter, autocast="bfloat16", max_grad_norm=1e9))
    with torch.no_grad():
        policy = learner._forward.token_logps(ROWS, training=True).logps
    pairs = learner.reference_logps(PAIRS, [None])
    reference = [sums for pair in pairs for sums in (pair.chosen_ref_logps, pair.rejected_ref_logps)]
    gradients = captured_gradients(learner, pairs)

    def flat(found: Any) -> list[torch.Tensor]:
        policy, reference, gradients = found
        wanted = [gradients[name].flatten() for name in sorted(gradients)]
        return [torch.cat(policy), torch.tensor([float(row.sum()) for row in reference]), torch.cat(wanted)]

    found = [torch.cat(policy), torch.tensor(reference), flat(((torch.zeros(1),), (), gradients))[2]]
    for ours, theirs, true in zip(found, flat(rounded), flat(exact), strict=True):
        assert 0.1 * (theirs - true).norm() < (ours - true).norm() < 1.5 * (theirs - true).norm()
        assert (ours - theirs).norm() < 0.1 * true.norm()


@pytest.mark.parametrize("cap", [50.0, 5.0])
def test_a_soft_cap_is_applied_and_one_that_is_dropped_is_found(
    cap: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SDPA drops it without a word."""
    model = build_family("Gemma 2", tmp_path / "model", attn_logit_softcapping=cap)
    adapter = moved(Learner(make_spec(str(model))).policy(0))
    expected = by_hand(plain(model, adapter, tmp_path / "adapter", dtype=torch.float32))
    learner = Learner(make_spec(str(model), adapter))
    for under, wanted in zip(learner.score(ROWS, ["policy", None]), expected, strict=False):
        for row, value in zip(under.token_logps, wanted, strict=True):
            torch.testing.assert_close(torch.tensor(row), value, rtol=0, atol=2e-5)
    monkeypatch.setattr(loading, "implementation_for", lambda config: None)
    with pytest.raises(ModelError, match=r"asks for attention that its implementation \(sdpa\) does not apply"):
        Learner(make_spec(str(model)))


DENSE = [name for name in FAMILIES if name not in ("Qwen3-MoE", "Mixtral", "Granite MoE", "DeepSeek-V3")]


@pytest.mark.parametrize(("family", "layers"), [*((name, 2) for name in DENSE), ("Llama 3", 5)])
def test_all_linear_of_a_dense_model_is_what_peft_means_by_it(family: str, layers: int, tmp_path: Path) -> None:
    """So adapters keep their bytes; from 20 names on, PEFT shortens the list."""
    model = build_family(family, tmp_path / "model", **({"num_hidden_layers": layers} if layers != 2 else {}))
    found = json.loads(Learner(make_spec(str(model))).policy(0).config)
    wanted = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(model), wanted)
    assert found["target_modules"] == sorted(wanted.target_modules)
    assert found["fan_in_fan_out"] == wanted.fan_in_fan_out == (family == "GPT-2")
    assert found["target_parameters"] is None


def test_a_mixture_in_bfloat16_is_not_taken_for_a_model_with_dropped_attention(tmp_path: Path) -> None:
    """Rounding sends some of its tokens to other experts, so single log-probs are nats off under other kernels."""
    Learner(make_spec(str(build_family("Mixtral", tmp_path / "model")), dtype="bfloat16"))


@pytest.mark.parametrize("family", ["Qwen3-MoE", "Mixtral", "Granite MoE", "DeepSeek-V3"])
def test_experts_are_left_alone_and_a_line_says_so(family: str, tmp_path: Path) -> None:
    model = build_family(family, tmp_path / "model")
    learner = Learner(make_spec(str(model)))
    assert "of every layer and leaves the experts of" in learner.notices()[0]
    names = [name for name, parameter in learner.model.named_parameters() if parameter.requires_grad]
    assert names and all(".self_attn." in name for name in names)
    learner.restore(learner.checkpoint())  # its own snapshot is not refused
    Learner(make_spec(str(model), learner.policy(1)))


def test_targets_that_could_not_be_pushed_are_refused_by_name(tmp_path: Path) -> None:
    mixtral = str(build_family("Mixtral", tmp_path / "mixtral"))
    for targets, message in (
        (["q_proj", "gate"], r"\['q_proj', 'gate'\], which in MixtralForCausalLM means gate\.weight; these are no"),
        (["w1", "w2", "w3"], r"which in MixtralForCausalLM means down_proj, gate_up_proj; these are no linear layers"),
    ):
        with pytest.raises(ModelError, match=message):
            Learner(make_spec(mixtral, lora={"r": 4, "targets": targets}))
    gpt2 = str(build_family("GPT-2", tmp_path / "gpt2"))
    with pytest.raises(ModelError, match=r"means transformer\.wte; these are no linear layers"):
        Learner(make_spec(gpt2, lora={"r": 4, "targets": ["c_attn", "wte"]}))
