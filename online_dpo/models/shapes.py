"""How large a model is, by its config.json alone: no weights, no tokenizer, no network.

For dense decoders and mixtures of experts. Biases and norms, less than a thousandth of a model, are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from online_dpo.errors import ModelError
from online_dpo.models import model_files

NOT_GATED = {"bloom", "codegen", "falcon", "gpt2", "gpt_bigcode", "gpt_neo", "gpt_neox", "gptj", "mpt", "opt", "phi"}
"""Families whose feed-forward layers have two matrices; those of all others have three (arXiv:2002.05202)."""

NORMED_HEADS = {"gemma3", "gemma3_text", "olmo2", "qwen3", "qwen3_moe"}
"""Families that normalise queries and keys."""

SHAPES = "shapes"
"""The folder beside a config that may hold the config.json of models on the hub, as `org--name.json`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """A model's sizes."""

    model_type: str
    hidden_size: int  # H
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int  # of one expert, in a mixture
    num_experts: int  # 1 = a dense model
    num_active_experts: int  # of them, that a token goes through
    vocab_size: int  # V
    tied: bool  # the head is the embedding
    classifies: bool  # a reward model: no head of V rows
    max_model_len: int | None  # tokens; None = the config does not say
    rope_switch: int | None  # see `model_files.rope_switch`
    quantised: bool

    @property
    def is_gated(self) -> bool:
        """Whether feed-forward layers have a gate."""
        return self.model_type not in NOT_GATED

    @property
    def has_normed_heads(self) -> bool:
        return self.model_type in NORMED_HEADS

    @property
    def query_size(self) -> int:
        """Of all heads together."""
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Of the keys of all heads together, and of their values."""
        return self.num_kv_heads * self.head_dim

    @property
    def attention(self) -> tuple[tuple[int, int], ...]:
        """(inputs, outputs) of each linear layer of a layer's attention; one matrix for three in some families."""
        h, q, kv = self.hidden_size, self.query_size, self.kv_size
        if self.model_type in ("gpt_neox", "bloom", "falcon"):
            return (h, q + 2 * kv), (q, h)
        return (h, q), (h, kv), (h, kv), (q, h)

    @property
    def feed_forward(self) -> tuple[tuple[int, int], ...]:
        """The same of one expert of a layer, or of its only feed-forward part."""
        h, i = self.hidden_size, self.intermediate_size
        return ((h, i),) * (2 if self.is_gated else 1) + ((i, h),)

    @property
    def lora_layers(self) -> tuple[tuple[int, int], ...]:
        """What `all-linear` means in a layer: in a mixture of experts, its attention."""
        return self.attention if self.num_experts > 1 else (*self.attention, *self.feed_forward)

    @property
    def num_decoder_parameters(self) -> int:
        """Of all layers, without embedding and head."""
        return self.num_layers * (_entries(self.attention) + self.num_experts * _entries(self.feed_forward))

    @property
    def num_parameters(self) -> int:
        """Of the whole model."""
        embeddings = 1 if self.tied or self.classifies else 2
        return self.num_decoder_parameters + embeddings * self.vocab_size * self.hidden_size

    @property
    def num_active_parameters(self) -> int:
        """That a token is multiplied with: a table of embeddings multiplies nothing, a head does."""
        layer = _entries(self.attention) + self.num_active_experts * _entries(self.feed_forward)
        return self.num_layers * layer + (0 if self.classifies else self.vocab_size * self.hidden_size)

    def kv_bytes(self, element_bytes: int) -> int:
        """Of one token's keys and values in all layers."""
        return 2 * self.num_layers * self.kv_size * element_bytes


def shape_of(config: Mapping[str, Any], label: str) -> ModelShape:
    """The sizes that the content of a config.json tells.

    Args:
        config: that content.
        label: the start of errors.

    Raises:
        ModelError: a size is missing, or is no positive number.
    """
    nested = config.get("text_config")
    flat: dict[str, Any] = {**nested, **config} if isinstance(nested, dict) else dict(config)

    def number(*names: str, default: int | None = None) -> int:
        found = next((flat[name] for name in names if flat.get(name) is not None), default)
        if type(found) is not int or found <= 0:
            shown = "missing" if found is None else repr(found)
            raise ModelError(
                f"{label}, where {names[0]} is {shown}; give the config.json that the model was published with"
            )
        return found

    if not isinstance(flat.get("model_type"), str):
        raise ModelError(f"{label}, which names no model_type; give the config.json that the model was published with")
    hidden, heads = number("hidden_size", "n_embd", "d_model"), number("num_attention_heads", "n_head", "n_heads")
    experts = number("num_local_experts", "num_experts", "n_routed_experts", default=1)
    intermediate = number("intermediate_size", "n_inner", "ffn_dim", default=4 * hidden)
    architectures = flat.get("architectures") or []
    return ModelShape(
        model_type=flat["model_type"],
        hidden_size=hidden,
        num_layers=number("num_hidden_layers", "n_layer", "num_layers"),
        num_heads=heads,
        num_kv_heads=number("num_key_value_heads", default=heads),
        head_dim=number("head_dim", default=max(hidden // heads, 1)),
        intermediate_size=number("moe_intermediate_size", default=intermediate) if experts > 1 else intermediate,
        num_experts=experts,
        num_active_experts=number("num_experts_per_tok", default=1) if experts > 1 else 1,
        vocab_size=number("vocab_size"),
        tied=flat.get("tie_word_embeddings") is True,
        classifies=any("Classification" in str(name) for name in architectures),
        max_model_len=model_files.context_length(flat),
        rope_switch=model_files.rope_switch(flat),
        quantised=flat.get("quantization_config") is not None,
    )


def read_shape(file: Path, *, field: str) -> ModelShape:
    """The sizes that a config.json, or a copy of it under another name, tells.

    Raises:
        ModelError: it cannot be read, or lacks a size.
    """
    label = f"{field}: the shape is {file}"
    return shape_of(model_files.read_json(file, label), label)


def find_shape(path: str, folder: Path) -> Path | None:
    """The file in a folder of shapes that describes a model of the hub; None where there is none.

    Args:
        path: the hub id, `org/name`.
        folder: of `org--name.json` files.
    """
    file = folder / file_name(path)
    return file if file.is_file() else None


def file_name(path: str) -> str:
    """That of a hub id in a folder of shapes."""
    return f"{path.replace('/', '--')}.json"


def _entries(matrices: tuple[tuple[int, int], ...]) -> int:
    return sum(inputs * outputs for inputs, outputs in matrices)
