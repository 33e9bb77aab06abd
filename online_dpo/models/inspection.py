"""What a model's folder says about the model, read without loading weights.

Everything a run must know about a model before an engine starts is read from JSON files and safetensors headers, so
that `online-dpo validate` needs neither torch nor transformers. Nothing is ever unpickled.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from online_dpo.errors import ModelError
from online_dpo.models import model_files, tokenizer

CAUSAL = "give a causal language model, such as Llama, Qwen or Mistral"
ENCODER_DECODER = f"an encoder-decoder; here a prompt and its completion are one text: {CAUSAL}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """What a model's folder says about it."""

    folder: Path
    eos_token_ids: tuple[int, ...]  # sorted set: the tokenizer's, config.json's and generation_config.json's
    max_model_len: int | None  # tokens; None = the config does not say
    vocab_size: int | None  # V, rows of the embedding; None = the config does not say
    model_type: str
    architectures: tuple[str, ...]
    fingerprint: str  # sha256, the same for the same files in any folder
    weight_files: tuple[Path, ...]  # safetensors, in name order
    quantised: bool
    hidden_size: int | None = None  # of the residual stream; None = the config does not say
    num_layers: int | None = None  # of the decoder; None = the config does not say
    rope_switch: int | None = None  # see `model_files.rope_switch`


def inspect_model(folder: Path, *, field: str, generates: bool = True) -> ModelInfo:
    """Read what a model's folder says about it, and check that it is whole.

    Args:
        folder: from `locate`.
        field: the config field that named it, for errors.
        generates: whether text is sampled from it; a classifier's tokenizer need not have an EOS token.

    Raises:
        ModelError: a file is missing or damaged, weights are not safetensors, or the tokenizer lacks a token.
    """
    label = f"{field} is {folder}"
    if not (folder / "config.json").is_file():
        hint = (
            "it is a LoRA adapter: set model.adapter to it and model.path to its base model"
            if (folder / "adapter_config.json").is_file()
            else "give a folder that save_pretrained wrote"
        )
        raise ModelError(f"{label}, which has no config.json; {hint}")
    model_files.refuse_pointers(folder, label)
    if (folder / "adapter_config.json").is_file():
        raise ModelError(
            f"{label}, which has an adapter_config.json beside its config.json; Transformers would put that adapter on "
            f"the model and vLLM would not: move the adapter into a folder of its own, and give it as model.adapter"
        )
    config = model_files.read_json(folder / "config.json", label)
    if not isinstance(config.get("model_type"), str):
        raise ModelError(
            f"{label}, whose config.json names no model_type, so that its architecture is unknown; put the config.json "
            f"there that the weights were saved with"
        )
    if generates and config.get("is_encoder_decoder") is True:
        raise ModelError(f"{label}, which is {config['model_type']}, {ENCODER_DECODER}")
    nested = config.get("text_config")
    # Multimodal configs keep the language model's numbers one level down.
    flat = {**nested, **config} if isinstance(nested, dict) else config
    vocab_size = flat.get("vocab_size") if isinstance(flat.get("vocab_size"), int) else None
    weights = model_files.weight_files(folder, label)
    tokens = tokenizer.special_token_ids(folder, label, vocab_size=vocab_size, generates=generates)
    tokenizer.check_ids(tokenizer.vocabulary(folder, label)[0], label, vocab_size=vocab_size)
    eos_token_ids = {tokens["eos_token"]} if "eos_token" in tokens else set()
    eos_token_ids |= _more_eos_ids(folder, flat, label)
    architectures = config.get("architectures")
    return ModelInfo(
        folder=folder,
        eos_token_ids=tuple(sorted(eos_token_ids)),
        max_model_len=model_files.context_length(flat),
        vocab_size=vocab_size,
        model_type=config["model_type"],
        architectures=tuple(map(str, architectures)) if isinstance(architectures, list) else (),
        fingerprint=model_files.fingerprint(folder, weights),
        weight_files=weights,
        quantised=flat.get("quantization_config") is not None,
        hidden_size=_number(flat, "hidden_size", "n_embd", "d_model"),
        num_layers=_number(flat, "num_hidden_layers", "n_layer", "num_layers"),
        rope_switch=model_files.rope_switch(config),
    )


def _more_eos_ids(folder: Path, config: Mapping[str, Any], label: str) -> set[int]:
    """The end-of-sequence ids that config.json and generation_config.json name; they may be more than the tokenizer's.

    Raises:
        ModelError: one of them is no id.
    """
    found: set[int] = set()
    file = folder / "generation_config.json"
    generation = model_files.read_json(file, label) if file.is_file() else {}
    for name, settings in (("config.json", config), (file.name, generation)):
        value = settings.get("eos_token_id")
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if not all(type(index) is int for index in ids):
            raise ModelError(f"{label}, whose {name} has the eos_token_id {value}; it must be a token's id, or a list")
        found |= set(ids)
    return found


def _number(config: Mapping[str, Any], *names: str) -> int | None:
    """The first of these fields that is a positive whole number; families call the same thing differently."""
    return next((value for name in names if isinstance(value := config.get(name), int) and value > 0), None)
