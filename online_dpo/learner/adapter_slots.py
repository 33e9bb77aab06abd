"""LoRA adapters: as bytes that travel (`types.Adapter`), and as the two slots of a PEFT model.

A learner's model holds two adapters on one base: the slot `POLICY` is trained; the slot `FROZEN` takes the weights of
whichever earlier policy is to be evaluated (the initial one, the reference, the previous version). All slots off is
the base model. An adapter that the config gives as the reference has the slot `GIVEN`, with its own rank and targets.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load as parse_safetensors
from safetensors.torch import save as write_safetensors
from torch import Tensor, nn

from online_dpo.config.learner import LoraSection
from online_dpo.errors import ModelError
from online_dpo.learner import lora_targets
from online_dpo.models.adapters import check_plain_lora, lora_layers
from online_dpo.types import Adapter, WeightsRef, derive_seed

POLICY, FROZEN, GIVEN = "default", "frozen", "given"

_HELD = "_held_by_frozen"
"""Attribute of the model: the bytes of the weights in the slot `FROZEN`."""

_INIT_CONFIGS = ("eva_config", "corda_config", "lora_ga_config")
"""Fields of a PEFT config that only say how an adapter was once initialised."""


def attach(model: nn.Module, lora: LoraSection | None, adapter: Adapter | None, *, seed: int) -> PeftModel:
    """Freeze a model and put LoRA on it: the trainable slot and the frozen one, in float32 whatever the base's dtype.

    Args:
        model: the base; it is changed in place.
        lora: of a new adapter (its B is zero, so it starts as the base model); None = defaults.
        adapter: to continue; rank, alpha, dropout and targets are then its own.
        seed: of the run; the initialisation derives from it and leaves the global random state alone.

    Raises:
        ModelError: the adapter is not a plain LoRA, or does not fit the model.
    """
    lora = lora or LoraSection()
    config = _new_config(lora, model) if adapter is None else _parse_config(adapter)
    devices = [parameter.device for parameter in model.parameters() if parameter.is_cuda][:1]
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(derive_seed(seed, "lora"))
        try:
            peft_model = get_peft_model(model, config)
        except ValueError as error:
            raise ModelError(
                f"LoRA does not fit {type(model).__name__}: {error}; name linear layers of this model in "
                f"learner.lora.targets, or use all-linear"
            ) from None
        if not isinstance(peft_model, PeftModel):
            raise ModelError(
                f"PEFT cannot wrap {type(model).__name__} with more than one adapter; choose another model"
            )
        lora_targets.check_targets(peft_model, POLICY, lora.targets if adapter is None else "the adapter's own")
        # PEFT has resolved the targets in place by now, so the second slot has the same layers.
        frozen = copy.deepcopy(config)
        frozen.inference_mode = True
        peft_model.add_adapter(FROZEN, frozen)
    for name, parameter in peft_model.named_parameters():
        parameter.requires_grad_(f".{POLICY}." in name)
    if adapter is not None:
        fill(peft_model, POLICY, adapter)
    return peft_model.eval()


def dropout_of(model: PeftModel) -> float:
    """The share of LoRA's inputs that is dropped in training."""
    config: Any = model.peft_config[POLICY]
    return float(config.lora_dropout)


def add_given(model: PeftModel, adapter: Adapter) -> None:
    """Put the adapter that `reference.path` names beside the policy, in a frozen slot of its own shape.

    Raises:
        ModelError: it is not a plain LoRA, or does not fit the model.
    """
    config = _parse_config(adapter)
    config.inference_mode = True
    try:
        model.add_adapter(GIVEN, config)
    except ValueError as error:
        raise ModelError(
            f"reference.path is an adapter that does not fit the model: {error}; give one that was trained on "
            f"model.path"
        ) from None
    model.set_adapter(POLICY)
    fill(model, GIVEN, adapter)
    model.eval()


def snapshot(model: PeftModel, *, version: int, base_name: str) -> Adapter:
    """The policy's weights as bytes: the same weights give the same bytes in every process.

    Args:
        model: from `attach`.
        version: to stamp on the adapter.
        base_name: written as `base_model_name_or_path`; the config's name of the model, never the folder it was
            loaded from, since adapters are committed and machine paths are not.
    """
    state = get_peft_model_state_dict(model, adapter_name=POLICY, save_embedding_layers=False)
    weights = {name: tensor.detach().to("cpu").contiguous() for name, tensor in sorted(state.items())}
    config = model.peft_config[POLICY].to_dict()
    config |= {"base_model_name_or_path": base_name, "inference_mode": True}
    return Adapter(
        version=version,
        weights=write_safetensors(weights, metadata={"format": "pt"}),
        config=json.dumps(_canonical(config), indent=2, sort_keys=True).encode(),
    )


def fill(model: PeftModel, slot: str, adapter: Adapter) -> None:
    """Copy an adapter's weights into a slot, in place: optimizer state stays with its parameters.

    Raises:
        ModelError: names or shapes differ from the slot's.
    """
    expected = get_peft_model_state_dict(model, adapter_name=slot, save_embedding_layers=False)
    found = parse_weights(adapter)
    wrong = sorted(expected.keys() ^ found.keys())
    if wrong:
        where = "the adapter lacks" if wrong[0] in expected else "the model lacks"
        raise ModelError(
            f"adapter version {adapter.version} does not fit the model: {where} {wrong[0]} "
            f"({len(wrong)} names differ); use the adapter's own base model, rank and targets"
        )
    for name, tensor in expected.items():
        if tensor.shape != found[name].shape:
            raise ModelError(
                f"adapter version {adapter.version} does not fit the model: {name} is {list(found[name].shape)} and "
                f"{list(tensor.shape)} is needed; use the adapter's own base model, rank and targets"
            )
    set_peft_model_state_dict(model, found, adapter_name=slot)


def _hold(model: PeftModel, adapter: Adapter) -> None:
    """Fill the frozen slot, unless it has these weights already: the version before is asked for after every push."""
    if getattr(model, _HELD, None) != adapter.weights:
        setattr(model, _HELD, None)
        fill(model, FROZEN, adapter)
        setattr(model, _HELD, adapter.weights)


@contextmanager
def weights_of(model: PeftModel, under: WeightsRef) -> Iterator[None]:
    """Run the model under other weights; afterwards the policy is active and trainable exactly as before."""
    try:
        if under is None:
            with model.disable_adapter():
                yield
        elif under == "policy":
            yield
        elif under == "reference_model":
            model.set_adapter(GIVEN, inference_mode=True)
            yield
        else:
            _hold(model, under)
            model.set_adapter(FROZEN, inference_mode=True)
            yield
    finally:
        # PEFT flips requires_grad of both slots at every switch; this makes the policy trainable, and it alone.
        model.set_adapter(POLICY)


def parse_weights(adapter: Adapter) -> dict[str, Tensor]:
    """Tensor name in the PEFT file -> tensor.

    Raises:
        ModelError: the bytes are not safetensors.
    """
    try:
        return parse_safetensors(adapter.weights)
    except SafetensorError as error:
        raise ModelError(
            f"adapter_model.safetensors of version {adapter.version} is not readable ({error}); "
            f"save the adapter again with PEFT's save_pretrained"
        ) from None


def _new_config(lora: LoraSection, model: nn.Module) -> LoraConfig:
    # PEFT and vLLM declare alpha as an integer; a whole number is written as one.
    alpha = int(lora.alpha) if float(lora.alpha).is_integer() else lora.alpha
    targets = lora_targets.all_linear(model) if lora.targets == "all-linear" else sorted(lora.targets)
    return LoraConfig(
        r=lora.r,
        lora_alpha=alpha,  # type: ignore[arg-type]
        lora_dropout=lora.dropout,
        target_modules=targets,
        task_type="CAUSAL_LM",
    )


def _parse_config(adapter: Adapter) -> LoraConfig:
    """The PEFT config of an adapter, as a trainable one.

    Raises:
        ModelError: it is not a plain LoRA on linear layers.
    """
    label = f"the given adapter is version {adapter.version}"
    try:
        fields = dict(json.loads(adapter.config))
    except (ValueError, TypeError) as error:
        raise ModelError(
            f"adapter_config.json is not a PEFT config ({error!r}); save the adapter again with PEFT's save_pretrained"
        ) from None
    check_plain_lora(fields, label)
    lora_layers({name: tuple(found.shape) for name, found in parse_weights(adapter).items()}, fields["r"], label)
    # Weights come from the file, so how they were once initialised no longer matters; PEFT would do it all over.
    fields |= {"inference_mode": False, "init_lora_weights": True} | dict.fromkeys(_INIT_CONFIGS, None)
    return LoraConfig.from_peft_type(**{**fields, "loftq_config": {}})


def _canonical(value: Any) -> Any:
    """Sets as sorted lists (PEFT keeps targets in a set, whose order differs from process to process)."""
    if isinstance(value, dict):
        return {key: _canonical(item) for key, item in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(_canonical(item) for item in value)
    return value
