"""A tiny random model of each family, with the family's own config class and everything that sets it apart."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from tiny_model import save_tokenizer
from transformers import AutoModelForCausalLM

VOCAB = 512
SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 96, "num_key_value_heads": 1, "max_position_embeddings": 512, "initializer_range": 0.15,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
WINDOW = 8
"""Of attention, in tokens: rows of tests are longer."""

LAYERS = ["sliding_attention", "full_attention"]
GEMMA: dict[str, Any] = {"head_dim": 32, "sliding_window": WINDOW, "query_pre_attn_scalar": 24, "layer_types": LAYERS}
LLAMA3_ROPE = {
    "rope_type": "llama3", "rope_theta": 500_000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
LONG_ROPE = {
    "rope_type": "longrope", "rope_theta": 10_000.0, "partial_rotary_factor": 0.75, "factor": 4.0,
    "short_factor": [1.0 + 0.02 * i for i in range(12)], "long_factor": [1.0 + 0.5 * i for i in range(12)],
    "original_max_position_embeddings": 512,
}  # fmt: skip
GPT2_SHAPE = {
    "vocab_size": VOCAB,
    "n_embd": 64,
    "n_layer": 2,
    "n_head": 2,
    "n_positions": 512,
    "initializer_range": 0.15,
}
ENDS = {name: SHAPE[name] for name in ("pad_token_id", "bos_token_id", "eos_token_id")}


def _config(name: str, **fields: Any) -> Callable[[], Any]:
    return lambda: getattr(transformers, name)(**{**SHAPE, **fields})


FAMILIES: dict[str, Callable[[], Any]] = {
    "Llama 3": _config("LlamaConfig", rope_parameters=LLAMA3_ROPE),
    "SmolLM": _config("LlamaConfig", tie_word_embeddings=True),
    "Qwen2": _config("Qwen2Config", tie_word_embeddings=True),
    "Qwen2.5": _config("Qwen2Config", rope_parameters={"rope_type": "default", "rope_theta": 1e6}),
    "Qwen3": _config("Qwen3Config", head_dim=32, tie_word_embeddings=True),
    "Qwen3-MoE": _config("Qwen3MoeConfig", head_dim=32, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32),
    "Mistral": _config("MistralConfig", sliding_window=WINDOW),
    "Mixtral": _config("MixtralConfig", num_local_experts=4, num_experts_per_tok=2),
    "Gemma 2": _config("Gemma2Config", **GEMMA),
    "Gemma 3": _config("Gemma3TextConfig", **GEMMA),
    "Phi-3": _config("Phi3Config", sliding_window=WINDOW),
    "Phi-4": _config("Phi3Config", sliding_window=None, max_position_embeddings=2048, rope_parameters=LONG_ROPE,
        original_max_position_embeddings=512,
   ),
    "GPT-2": lambda: transformers.GPT2Config(**GPT2_SHAPE, **ENDS),
    "GPT-NeoX, Pythia": _config("GPTNeoXConfig", num_key_value_heads=2),
    "OLMo 2": _config("Olmo2Config"),
    "Granite": _config(
        "GraniteConfig", embedding_multiplier=3.0, residual_multiplier=0.4, attention_multiplier=0.2,
        logits_scaling=0.5,
    ),
    "Granite MoE": _config("GraniteMoeConfig", num_local_experts=4, num_experts_per_tok=2),
    "Cohere": _config("CohereConfig", logit_scale=0.25),
    "DeepSeek-V3": _config(
        "DeepseekV3Config", num_key_value_heads=2, q_lora_rank=16, kv_lora_rank=16, qk_nope_head_dim=32,
        qk_rope_head_dim=16, v_head_dim=32, n_routed_experts=4, num_experts_per_tok=2, n_group=1, topk_group=1,
        moe_intermediate_size=32, first_k_dense_replace=1,
        topk_method="noaux_tc",
    ),
}  # fmt: skip
"""Name as people say it -> config."""


def build_family(name: str, folder: Path, *, dtype: torch.dtype = torch.float32, **changes: Any) -> Path:
    """Write a random model and its tokenizer; the distribution is far from flat, and no norm or bias is idle.

    Args:
        name: of `FAMILIES`.
        folder: to be made.
        dtype: of the weights in the files.
        changes: of fields of the config.
    """
    save_tokenizer(folder)
    config = FAMILIES[name]()
    for field, value in changes.items():
        setattr(config, field, value)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    model.to(dtype).save_pretrained(folder)
    return folder
