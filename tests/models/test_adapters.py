"""LoRA adapters that a run continues: how they travel, and which are refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from model_kit import change_json
from peft import LoraConfig, get_peft_model, preprocess_loraga
from peft.tuners.lora import LoraGAConfig
from safetensors.torch import load, load_file, save, save_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from online_dpo.errors import ModelError
from online_dpo.models.adapters import read_adapter
from online_dpo.models.inspection import inspect_model
from online_dpo.models.merging import MergeExtension, Share, merged_tensors
from online_dpo.models.model_files import weight_names
from online_dpo.types import Adapter


@pytest.fixture
def adapter(saved: Path, tmp_path: Path) -> Path:
    """A copy of the adapter's folder that a test may break."""
    return Path(shutil.copytree(saved / "adapter", tmp_path / "adapter"))


def test_an_adapter_travels_without_paths(saved: Path, adapter: Path) -> None:
    base = inspect_model(saved / "model", field="model.path")
    change_json(adapter / "adapter_config.json", base_model_name_or_path="/home/somebody/models/base")
    found = read_adapter(str(adapter), base=base)
    assert found.version == 0
    assert found.weights == (saved / "adapter" / "adapter_model.safetensors").read_bytes()
    config = json.loads(found.config)
    assert (config["base_model_name_or_path"], config["r"]) == (None, 2)
    assert config["target_modules"] == ["down_proj", "q_proj", "v_proj"]
    # The same adapter elsewhere, its targets in another order of a set: the same digest.
    change_json(
        adapter / "adapter_config.json",
        base_model_name_or_path="/elsewhere",
        target_modules=["v_proj", "q_proj", "down_proj"],
    )
    assert read_adapter(str(adapter), base=None).digest == found.digest
    change_json(adapter / "adapter_config.json", base_model_name_or_path="org/base")
    assert json.loads(read_adapter(str(adapter), base=None).config)["base_model_name_or_path"] == "org/base"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"peft_type": "IA3"}, "whose peft_type is IA3; only LoRA can be pushed"),
        ({"use_dora": True}, "which has use_dora: true; only plain LoRA"),
        ({"bias": "lora_only"}, 'which has bias: "lora_only"; only plain LoRA'),
        ({"modules_to_save": ["lm_head"]}, r'which has modules_to_save: \["lm_head"\]'),
        ({"rank_pattern": {"q_proj": 4}}, r'which has rank_pattern: \{"q_proj": 4\}'),
        ({"alpha_pattern": {"q_proj": 4}}, "which has alpha_pattern"),
        ({"init_lora_weights": "pissa"}, 'which has init_lora_weights: "pissa"'),
        ({"init_lora_weights": "lora_ga"}, 'which has init_lora_weights: "lora_ga"'),
        ({"r": 1024}, "whose rank r is 1024; vLLM takes 1 to 512"),
        ({"r": 4}, "which is no LoRA of rank 4"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_other_than_plain_lora_is_refused(adapter: Path, changes: dict[str, Any], expected: str) -> None:
    change_json(adapter / "adapter_config.json", **changes)
    with pytest.raises(ModelError, match=expected) as caught:
        read_adapter(str(adapter), base=None)
    assert str(caught.value).startswith(f"model.adapter is {adapter}, ")


@pytest.mark.parametrize("init", [True, False, "gaussian", "orthogonal", "mica", "pissa", "olora", "lora_ga"])
def test_an_initialisation_is_refused_exactly_when_peft_changes_the_base_with_it(
    saved: Path, tmp_path: Path, init: bool | str
) -> None:
    model = AutoModelForCausalLM.from_pretrained(saved / "model")
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    extra: dict[str, Any] = {"lora_ga_config": LoraGAConfig()} if init == "lora_ga" else {}
    lora = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=init, **extra)
    if init == "lora_ga":
        ids = torch.arange(16)[None]
        preprocess_loraga(model, lora, lambda: model(input_ids=ids, labels=ids).loss.backward())
    peft_model = get_peft_model(model, lora)
    after = {name.replace(".base_layer", ""): weight for name, weight in peft_model.get_base_model().named_parameters()}
    is_changed = any(not torch.equal(weight, after[name]) for name, weight in before.items())
    peft_model.save_pretrained(tmp_path / "made")
    if is_changed:
        with pytest.raises(ModelError, match="which has init_lora_weights"):
            read_adapter(str(tmp_path / "made"), base=None)
    else:
        read_adapter(str(tmp_path / "made"), base=None)
    assert is_changed == (init in ("pissa", "olora", "lora_ga"))


@pytest.mark.parametrize(
    "name",
    ["base_model.model.lm_head.lora_A.weight", "base_model.model.model.embed_tokens.lora_embedding_A"],
)
def test_tensors_of_heads_and_embeddings_are_refused(adapter: Path, name: str) -> None:
    weights = load_file(adapter / "adapter_model.safetensors")
    save_file({**weights, name: torch.zeros(2, 16)}, adapter / "adapter_model.safetensors")
    with pytest.raises(ModelError, match=f"has the tensor {name}; only LoRA of linear layers"):
        read_adapter(str(adapter), base=None)


def test_an_adapter_of_another_model_is_refused(saved: Path, adapter: Path, folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"] = torch.zeros(16, 25)
    save_file(weights, folder / "model.safetensors")
    narrower = inspect_model(folder, field="model.path")
    expected = r"layers.1.mlp.down_proj maps 24 to 16 features, but the model's is \(16, 25\)"
    with pytest.raises(ModelError, match=expected):
        read_adapter(str(adapter), base=narrower)

    del weights["model.layers.1.mlp.down_proj.weight"]
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(ModelError, match="but the model has no such layer; give the adapter's own base model"):
        read_adapter(str(adapter), base=inspect_model(folder, field="model.path"))

    # Packed weights have other shapes, so that nothing can be said about a quantised base from its header.
    change_json(folder / "config.json", quantization_config={"quant_method": "awq"})
    assert read_adapter(str(adapter), base=inspect_model(folder, field="model.path")).version == 0

    # Some checkpoints leave out the prefix of the base model.
    full = load_file(saved / "model" / "model.safetensors")
    save_file({name.removeprefix("model."): tensor for name, tensor in full.items()}, folder / "model.safetensors")
    change_json(folder / "config.json", quantization_config=None)
    assert read_adapter(str(adapter), base=inspect_model(folder, field="model.path")).version == 0


def test_incomplete_and_pickled_adapters(adapter: Path) -> None:
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(ModelError, match=r"adapter_model\.bin is pickled, and nothing is ever unpickled here"):
        read_adapter(str(adapter), base=None)
    (adapter / "adapter_model.bin").rename(adapter / "adapter_model.safetensors")
    (adapter / "adapter_config.json").unlink()
    with pytest.raises(ModelError, match=r"which has no adapter_config\.json; give a folder that PEFT's"):
        read_adapter(str(adapter), base=None)
    with pytest.raises(ModelError, match="give the folder of an adapter"):
        read_adapter("./no-adapter", base=None)


def test_a_layer_is_found_in_the_files_by_its_place_in_the_stack_or_not_at_all() -> None:
    stored = ["h.0.attn.c_attn.weight", "h.0.attn.c_attn.bias", "h.1.attn.c_attn.weight", "lm_head.weight"]
    wanted = ["transformer.h.0.attn.c_attn", "transformer.h.1.attn.c_attn", "transformer.h.2.attn.c_attn"]
    assert weight_names(wanted, stored) == {wanted[0]: stored[0], wanted[1]: stored[2]}
    towers = ["vision.layers.0.q_proj.weight", "language.layers.0.q_proj.weight"]
    assert weight_names(["model.language.layers.0.q_proj"], towers) == {}
    assert weight_names(["language.layers.0.q_proj"], towers) == {"language.layers.0.q_proj": towers[1]}


@pytest.mark.parametrize("prefix", ["transformer.", ""], ids=["as saved", "as the hub has it"])
def test_an_update_of_gpt2_is_merged_as_peft_merges_it(prefix: str, tmp_path: Path) -> None:
    """Its square matrices are stored transposed, and the hub's files lack the first part of every name."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=32, n_embd=16, n_layer=2, n_head=2, n_positions=32))
    model.save_pretrained(tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    tensors = {name.replace("transformer.", prefix): tensor for name, tensor in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})
    lora = LoraConfig(r=2, lora_alpha=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    wrapped = get_peft_model(model, lora)
    wrapped.save_pretrained(tmp_path / "adapter")
    adapter = read_adapter(str(tmp_path / "adapter"), base=None)
    merged = dict(merged_tensors(tmp_path / "model", adapter, dtype=torch.float32))
    wanted = wrapped.merge_and_unload().state_dict()
    assert merged.keys() == tensors.keys()
    for name, tensor in merged.items():
        torch.testing.assert_close(tensor, wanted[f"transformer.{name.removeprefix('transformer.')}"])
    extra = {"base_model.model.transformer.h.7.mlp.c_fc.lora_A.weight": torch.zeros(2, 16)}
    extra |= {"base_model.model.transformer.h.7.mlp.c_fc.lora_B.weight": torch.zeros(64, 2)}
    foreign = Adapter(version=0, weights=save(load(adapter.weights) | extra), config=adapter.config)
    with pytest.raises(ModelError, match=r"the adapter has layers that .* lacks: transformer\.h\.7\.mlp\.c_fc"):
        merged_tensors(tmp_path / "model", foreign, dtype=torch.float32)


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("size", [1e-4, 1e-3, 1e-1])
@pytest.mark.parametrize("fast", [True, False])
def test_a_merged_weight_is_rounded_once_and_says_what_is_left_of_the_update(
    stored: torch.dtype, size: float, fast: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against whole matrices in float64; in float32 the weight is merged in five pieces, the last one smaller."""
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: fast)  # slow where it is not, but as exact
    torch.manual_seed(0)
    weight = (0.02 * torch.randn(300, 2048)).to(stored)
    a, b = torch.randn(4, 2048), torch.randn(300, 4)
    b *= size * weight.float().norm() / (2.0 * b @ a).norm()
    save_file({"l.q_proj.weight": weight, "l.norm.weight": torch.ones(3)}, tmp_path / "model.safetensors")
    tensors = {f"base_model.model.l.q_proj.lora_{name}.weight": tensor for name, tensor in (("A", a), ("B", b))}
    adapter = Adapter(version=1, weights=save(tensors), config=json.dumps({"r": 4, "lora_alpha": 8}).encode())
    share = Share()
    merged = dict(merged_tensors(tmp_path, adapter, dtype=torch.bfloat16, share=share))
    wanted = 2.0 * b.double() @ a.double()
    expected = (weight.double() + wanted).to(torch.bfloat16)
    found = merged["l.q_proj.weight"]
    assert (found != expected).float().mean() < 1e-4  # sums within float32's error of the middle of two neighbours
    assert torch.equal(merged["l.norm.weight"], torch.ones(3))
    held = found.double() - weight.to(torch.bfloat16).double()
    first = slice(0, 64)  # rows of the first piece, which stands for all
    by_hand = ((held * wanted)[first].sum() / wanted[first].square().sum()).item()
    assert share.value() == pytest.approx(by_hand, rel=1e-4)
    assert by_hand == pytest.approx(((held * wanted).sum() / wanted.square().sum()).item(), rel=0.2)
    if stored == torch.bfloat16:  # a base with more digits lies between two neighbours, and any update moves some
        assert by_hand < 0.3 if size == 1e-4 else by_hand > 0.3
    assert Share().value() is None


def test_an_engine_is_given_all_but_experts_and_what_it_keeps_of_the_vocabulary(tmp_path: Path) -> None:
    """A layer that gets some of its tensors alone would be left with memory that nobody wrote, so a head's bias goes
    with its weight."""
    layers = ["model.layers.0.self_attn.q_proj.weight", "model.norm.weight", "model.embed_tokens_per_layer.weight"]
    vocabulary = ["model.embed_tokens.weight", "transformer.wte.weight", "lm_head.weight", "lm_head.bias"]
    names = [*layers, *vocabulary, "model.layers.0.mlp.experts.0.up_proj.weight"]
    save_file({name: torch.ones(2, 2) for name in names}, tmp_path / "model.safetensors")

    def given(with_vocabulary: bool) -> list[str]:
        extension, seen = MergeExtension(), dict[str, Any]()
        extension.model_runner = SimpleNamespace(
            model_config=SimpleNamespace(dtype=torch.float32),
            device="cpu",
            reload_weights=lambda weights_iterator: seen.update(weights_iterator),
        )
        extension.load_merged(str(tmp_path), None, None, with_vocabulary)
        return sorted(seen)

    assert given(False) == sorted(layers)
    assert given(True) == sorted([*layers, *vocabulary])
