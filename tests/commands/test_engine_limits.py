"""What is known not to run is refused by name, from files alone, before an engine starts."""

from __future__ import annotations

from pathlib import Path

import pytest
import transformers
from engine_kit import small_config
from family_kit import SHAPE, build_family
from learner_kit import make_spec
from tiny_model import save_tokenizer

from online_dpo.commands.preparing.fitting import check_lengths
from online_dpo.commands.preparing.model_checks import check_models, own_models
from online_dpo.commands.preparing.specs import check_cpu_engine, linear_layers
from online_dpo.errors import ConfigError, ModelError
from online_dpo.learner.learner import Learner
from online_dpo.models.inspection import inspect_model
from online_dpo.models.model_files import tensor_shapes


def test_latent_attention_state_spaces_and_adapters_beside_experts_are_refused_on_cpu(tmp_path: Path) -> None:
    info = inspect_model(build_family("DeepSeek-V3", tmp_path / "mla"), field="model.path")
    with pytest.raises(ConfigError, match=r"model\.path is m, which is deepseek_v3, a model with latent attention"):
        check_cpu_engine(info, "m", "merge")
    mamba = tmp_path / "mamba"
    save_tokenizer(mamba)
    config = transformers.MambaConfig(vocab_size=512, hidden_size=64, num_hidden_layers=2, state_size=8)
    transformers.MambaForCausalLM(config).save_pretrained(mamba)
    with pytest.raises(ConfigError, match=r"which is mamba, a model with state-space or linear-attention layers"):
        check_cpu_engine(inspect_model(mamba, field="model.path"), "m", "merge")
    with pytest.raises(ModelError, match=r"LoRA does not fit MambaForCausalLM"):  # wherever it is sampled
        Learner(make_spec(str(mamba)))
    for family in ("Mixtral", "Qwen3-MoE", "Granite MoE"):
        info = inspect_model(build_family(family, tmp_path / family), field="model.path")
        check_cpu_engine(info, "m", "merge")
        with pytest.raises(ConfigError, match=r"generator\.weight_push is lora and m is a mixture of experts"):
            check_cpu_engine(info, "m", "lora")
        assert linear_layers(info) == ("k_proj", "o_proj", "q_proj", "v_proj")


def test_longer_rows_than_a_model_turns_by_its_short_factors_are_refused(tmp_path: Path) -> None:
    """Beyond them vLLM takes the long factors for every row, transformers only for the longer ones."""
    model = build_family("Phi-4", tmp_path / "model", original_max_position_embeddings=171)
    info = inspect_model(model, field="model.path")
    config = small_config(tmp_path / "run", model)  # 160 + 12 tokens
    with pytest.raises(ConfigError, match=r"together 172 tokens, and .* beyond 171 \(rope_type longrope\)"):
        check_lengths(config, info)
    check_lengths(small_config(tmp_path / "run", model, ["sampling.max_tokens=11"]), info)


def test_layers_that_the_files_do_not_hold_are_refused_before_ray_starts(tmp_path: Path) -> None:
    """A model of text and images: its files call a layer `language_model.model.layers`, transformers the reverse."""
    vision = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    vision |= {"image_size": 28, "patch_size": 14}
    config = transformers.Gemma3Config(text_config={**SHAPE, "head_dim": 32}, vision_config=vision)
    model = tmp_path / "model"
    save_tokenizer(model)
    transformers.Gemma3ForConditionalGeneration(config).save_pretrained(model)
    run = small_config(tmp_path / "run", model)
    info = inspect_model(model, field="model.path")
    with pytest.raises(
        ModelError, match=r"Gemma3ForConditionalGeneration, whose layer model\.language_model\.layers\.0"
    ):
        check_models(run, own_models(run, info, None), None, None)
    assert any("vision" in name for file in info.weight_files for name in tensor_shapes(file, "model.path"))
