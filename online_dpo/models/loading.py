"""Loading models with transformers, so that no weight is missing, left over, of another shape, or not a number.

transformers fills a weight that a file lacks, or has in another shape, with random numbers, and only warns.
`empty_model` finds that before anything is loaded: it goes through transformers' own loading, with renamed and fused
tensors, but on the meta device, where tensors have shapes and no content.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BitsAndBytesConfig,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES
from transformers.quantizers import AutoHfQuantizer
from transformers.utils import logging

from online_dpo.errors import ModelError, first_line
from online_dpo.models.attention import implementation_for
from online_dpo.models.inspection import CAUSAL, ENCODER_DECODER, ModelInfo
from online_dpo.models.model_files import Head, tensor_shapes

_LANGUAGE_MODELS = ("ForCausalLM", "LMHeadModel", "WithLMHead", "ForConditionalGeneration")
_SAVE_AGAIN = "download the files again, or save them again with save_pretrained"


def read_config(folder: Path | str, *, label: str, trust_remote_code: bool) -> Any:
    """The config of a model in transformers.

    Args:
        folder: of the model.
        label: the start of errors, such as `model.path is models/x`.
        trust_remote_code: run code that the folder brings along.

    Raises:
        ModelError: transformers does not know the architecture, or the numbers make no model.
    """
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    # Configs check themselves in their own ways, and remote code raises anything.
    except Exception as error:
        raise ModelError(
            f"{label}, whose config.json this version of transformers cannot use ({first_line(error)}); correct "
            f"model_type and the numbers there, or set trust_remote_code beside the path if the model comes with code "
            f"that you trust"
        ) from error


def empty_model(info: ModelInfo, *, label: str, trust_remote_code: bool, head: Head = "language") -> Any:
    """A model without content, whose tensors were compared with the headers of its files; reads no weights.

    Args:
        info: from `inspect_model`.
        label: the start of errors.
        trust_remote_code: run code that the folder brings along.
        head: what the model must have.

    Returns:
        The model on the meta device. That of a quantised model is not quantised, and its tensors are not compared.

    Raises:
        ModelError: it is no model of that kind, or its files do not hold what its config asks for.
    """
    with quiet():
        config = read_config(info.folder, label=label, trust_remote_code=trust_remote_code)
        if head == "language":
            _check_language_model(config, info, label)
        if info.quantised:
            _check_quantiser(config, label)
        auto = _auto(head, config)
        try:
            with torch.device("meta"):
                model = auto.from_config(config, trust_remote_code=trust_remote_code)
            if info.quantised:
                return model
            model, found = type(model).from_pretrained(
                None, config=config, state_dict=_headers(info, label), device_map="meta", **_TOLERANT
            )
        except Exception as error:
            raise ModelError(
                f"{label}, which transformers cannot build as {_wanted(head)} ({_reason(error)}); give "
                f"{_wanted(head)} whose config.json belongs to its weights"
            ) from error
    check_loaded(found, label=label, head=head)
    return model


def load_weights(
    folder: Path | str, config: Any, *, label: str, head: Head = "language", new_head: bool = False, **options: Any
) -> Any:
    """A model with its weights, all of which its files hold.

    Args:
        folder: of the model.
        config: of transformers.
        label: the start of errors.
        head: as for `empty_model`.
        new_head: a classifier's head may be missing or of another shape, and is then drawn anew, as torch's random
            state has it.
        options: of `from_pretrained`.

    Raises:
        ModelError: it does not load, or a weight is missing, left over or of another shape.
    """
    auto, attention = _auto(head, config), implementation_for(config)
    try:
        with quiet():
            model, found = auto.from_pretrained(
                folder, config=config, attn_implementation=attention, use_safetensors=True, **_TOLERANT, **options
            )
    # Packages for a quantised model may be missing.
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not _is_conversion(error):
            raise  # such as too little memory, which is not about the folder
        raise ModelError(
            f"{label}, which does not load as {_wanted(head)} ({_reason(error)}); give a folder with "
            f"config.json and safetensors weights, or a hub id"
        ) from error
    if new_head:
        found = {**found, **_without_head(found, f"{model.base_model_prefix}.")}
    is_quantised = getattr(model, "hf_quantizer", None) is not None
    check_loaded(found, label=label, head=head, takes_more=is_quantised)
    return model


def _without_head(found: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The weights that are missing or of another shape, without those that are not the base model's."""
    return {
        "missing_keys": [name for name in found["missing_keys"] if name.startswith(prefix)],
        "mismatched_keys": [entry for entry in found["mismatched_keys"] if entry[0].startswith(prefix)],
    }


def nf4_options() -> dict[str, Any]:
    """What makes `load_weights` quantise linear layers to 4 bits as they come (QLoRA, arXiv:2305.14314).

    Embeddings, norms and the head keep their precision. With `device_map` weights go to the device one by one, so that
    the whole model is never there unquantised.
    """
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    return {"quantization_config": config}


def check_loaded(found: Mapping[str, Any], *, label: str, head: Head = "language", takes_more: bool = False) -> None:
    """Refuse a model of which transformers filled in something, or left something out.

    What tied heads and buffers legitimately lack, transformers has taken off its lists.

    Args:
        found: `output_loading_info` of `from_pretrained`.
        label: the start of errors.
        head: of the model; beside a classification head weights that are left over, such as a language model's head,
            do no harm.
        takes_more: weights that are left over do no harm here either.

    Raises:
        ModelError: a weight is missing, of another shape, or left over.
    """
    mismatched = sorted((name, [*stored], [*wanted]) for name, stored, wanted in found["mismatched_keys"])
    missing, unexpected = sorted(found["missing_keys"]), sorted(found["unexpected_keys"])
    if mismatched:
        name, stored, wanted = mismatched[0]
        raise ModelError(
            f"{label}, whose config.json does not belong to its weights: {name} is {stored} in the files and {wanted} "
            f"by config.json ({len(mismatched)} tensors differ); put the config.json there that the weights were saved "
            f"with"
        )
    if missing:
        remedy = f"it was not saved as {_wanted(head)}: choose a reward model" if head != "language" else _SAVE_AGAIN
        raise ModelError(
            f"{label}, which has no weights for {_some(missing)}, so that transformers would fill them with random "
            f"numbers; {remedy}"
        )
    if unexpected and head == "language" and not takes_more:
        raise ModelError(
            f"{label}, whose files hold weights that its config.json has no place for: {_some(unexpected)}; put the "
            f"config.json there that the weights were saved with, or save the model once with transformers, which "
            f"leaves them out"
        )


def check_finite(tensors: Iterable[tuple[str, Tensor]], *, label: str) -> None:
    """Refuse NaN and infinity.

    Args:
        tensors: names and contents.
        label: the start of errors.

    Raises:
        ModelError: a value is not finite.
    """
    for name, tensor in tensors:
        if not tensor.is_floating_point():
            continue
        finite = torch.isfinite(tensor.float() if tensor.element_size() == 1 else tensor)
        if not bool(finite.all()):
            raise ModelError(
                f"{label}, whose weights are not all numbers: {int((~finite).sum())} of the {tensor.numel()} values of "
                f"{name} are NaN or infinite; {_SAVE_AGAIN}"
            )


def stored_tensors(info: ModelInfo) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a model's files, one in memory at a time."""
    for file in info.weight_files:
        with safe_open(str(file), framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - safe_open is not a mapping
                yield name, tensors.get_tensor(name)


_TOLERANT: Mapping[str, Any] = {"output_loading_info": True, "ignore_mismatched_sizes": True}
"""transformers then loads what it can and lists the rest, of which our own messages are made."""


def _check_language_model(config: Any, info: ModelInfo, label: str) -> None:
    """Refuse what can continue no text, though transformers may have a class that loads it as a language model."""
    named = f"{label}, which is {' and '.join(info.architectures) or info.model_type}"
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(f"{named}, {ENCODER_DECODER}")
    if config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False):
        raise ModelError(f"{named}, an encoder that reads text in both directions; it can continue none: {CAUSAL}")
    has_own_code = bool(getattr(config, "auto_map", None))
    if info.architectures and not has_own_code and not any(a.endswith(_LANGUAGE_MODELS) for a in info.architectures):
        raise ModelError(f"{named} by its config.json, which is no causal language model; {CAUSAL}")


def _check_quantiser(config: Any, label: str) -> None:
    settings: Any = getattr(config, "quantization_config", None)
    settings = settings or getattr(config.get_text_config(), "quantization_config", None)
    method = settings.get("quant_method") if isinstance(settings, dict) else getattr(settings, "quant_method", None)
    try:
        AutoHfQuantizer.from_config(settings, pre_quantized=True).validate_environment(
            device_map=None, weights_only=True
        )
    except Exception as error:
        raise ModelError(
            f"{label}, which is quantised ({method}) and cannot be loaded on this machine ({first_line(error)}); "
            f"install what that needs, or give the model's unquantised weights"
        ) from error


def _headers(info: ModelInfo, label: str) -> dict[str, Tensor]:
    shapes = {name: shape for file in info.weight_files for name, shape in tensor_shapes(file, label).items()}
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def _is_conversion(error: Exception) -> bool:
    return "conversion of the weights" in str(error)


def _reason(error: Exception) -> str:
    if _is_conversion(error):  # transformers says no more, and has the rest in its log
        return "its tensors of experts do not fit together: one is missing or has another shape"
    return first_line(error)


def _auto(head: Head, config: Any) -> Any:
    """The class of transformers that loads a model with this head."""
    own_code = getattr(config, "auto_map", None) or {}
    if head == "token" and "AutoModel" in own_code and "AutoModelForTokenClassification" not in own_code:
        return AutoModel  # a head per token in code of its own, as Qwen2.5-Math-PRM has it
    return {
        "language": AutoModelForCausalLM,
        "sequence": AutoModelForSequenceClassification,
        "token": AutoModelForTokenClassification,
    }[head]


def _wanted(head: Head) -> str:
    return "a causal language model" if head == "language" else f"a {head}-classification model"


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' progress bars and reports: what they say becomes an error, or is of no interest."""
    verbosity, has_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if has_bars:
            logging.enable_progress_bar()
