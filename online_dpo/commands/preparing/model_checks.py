"""What a run's models must be, checked before Ray starts: every one that its config names, the judges' too."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from online_dpo.config.control import PathReference
from online_dpo.config.judges.hosted import ClassifierJudge, RewardModelJudge
from online_dpo.config.judges.llm import ChatEngineSection, LlmJudge
from online_dpo.config.judges.section import JudgeSection, hosted_judges
from online_dpo.config.run import RunConfig
from online_dpo.errors import ConfigError, ModelError
from online_dpo.importing import quick_imports
from online_dpo.models.given_reference import FIELD as REFERENCE_FIELD
from online_dpo.models.given_reference import GivenReference
from online_dpo.models.inspection import ModelInfo, inspect_model
from online_dpo.models.locating import locate
from online_dpo.models.model_files import Head
from online_dpo.types import Adapter


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedModel:
    """A model that a field of the config names, and what its folder says about it."""

    field: str  # such as `judge.path`
    path: str  # that the field has
    info: ModelInfo
    head: Head = "language"
    trust_remote_code: bool

    @property
    def label(self) -> str:
        """The start of errors."""
        return f"{self.field} is {self.path}"


def inspect_judge_models(judge: JudgeSection, field: str, *, wanted: Callable[[str], bool]) -> Iterator[NamedModel]:
    """Find the models of a judge and of those inside it, and look at their files.

    Args:
        judge: the section.
        field: where it stands in the config.
        wanted: whether a path is to be looked at; a hub id may be downloaded.

    Raises:
        ModelError: a model is missing or damaged.
    """
    model: ClassifierJudge | ChatEngineSection
    head: Head
    for place, section in hosted_judges(judge, field):
        if isinstance(section, ClassifierJudge):
            name, model = f"{place}.path", section
            head = "sequence" if isinstance(section, RewardModelJudge) else "token"
        elif isinstance(section, LlmJudge) and section.engine is not None:
            name, model, head = f"{place}.engine.path", section.engine, "language"
        else:
            continue
        if wanted(model.path):
            info = inspect_model(locate(model.path, field=name), field=name, generates=head == "language")
            trusted = model.trust_remote_code
            yield NamedModel(field=name, path=model.path, info=info, head=head, trust_remote_code=trusted)


def own_models(config: RunConfig, model: ModelInfo, reference: GivenReference | None) -> list[NamedModel]:
    """The models of the policy and, where it is another one, of the reference."""
    trusted = config.model.trust_remote_code
    found = [NamedModel(field="model.path", path=config.model.path, info=model, trust_remote_code=trusted)]
    section = config.reference
    if isinstance(section, PathReference) and isinstance(reference, ModelInfo):
        trusted = section.trust_remote_code
        found.append(NamedModel(field=REFERENCE_FIELD, path=section.path, info=reference, trust_remote_code=trusted))
    return found


def check_models(
    config: RunConfig, models: Sequence[NamedModel], adapter: Adapter | None, reference: GivenReference | None
) -> None:
    """Build every model without its weights, compare it with its files, and put LoRA on the policy; takes a second.

    Args:
        config: of the run.
        models: the policy first.
        adapter: that the policy continues.
        reference: what `reference.path` names.

    Raises:
        ModelError: a model is of another kind, lacks a weight or has one of another shape; an adapter does not fit, or
            LoRA is on a layer that could not be pushed.
        ConfigError: a target of LoRA is no layer.
    """
    with quick_imports():
        from online_dpo.learner import adapter_slots, lora_targets
        from online_dpo.models.loading import empty_model

    policy, *_ = [
        empty_model(m.info, label=m.label, trust_remote_code=m.trust_remote_code, head=m.head) for m in models
    ]
    lora = config.learner.lora
    if lora is not None and adapter is None and not isinstance(lora.targets, str):
        check_named_layers(policy, lora.targets)
    slots = _check_adapters(config, policy, adapter, reference if isinstance(reference, Adapter) else None)
    if not models[0].info.quantised:  # into a quantised base nothing is merged
        lora_targets.check_stored(slots, adapter_slots.POLICY, models[0].info.weight_files)


def check_named_layers(model: Any, targets: Sequence[str], *, field: str = "learner.lora.targets") -> None:
    """Refuse a target that names no layer: PEFT passes over it as long as another one names some.

    Args:
        model: the policy's base, with or without content.
        targets: names of layers.
        field: of the config, that has them.

    Raises:
        ConfigError: there is such a target.
    """
    from online_dpo.learner.lora_targets import all_linear

    names = [name for name, _ in model.named_modules()]
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in names):
            known = sorted({name.split(".")[-1] for name in all_linear(model)})
            raise ConfigError(
                f"{field} contains {target}, and {type(model).__name__} has no layer of that name; name "
                f"some of {', '.join(known)}, or use all-linear"
            )


def _check_adapters(config: RunConfig, policy: Any, adapter: Adapter | None, given: Adapter | None) -> Any:
    """Put LoRA on the policy without content, and look at the values of adapters that exist already; the policy."""
    import torch

    from online_dpo.learner import adapter_slots
    from online_dpo.models.loading import check_finite

    own = f"model.adapter is {config.model.adapter}"
    other = f"{REFERENCE_FIELD} is {getattr(config.reference, 'path', None)}"
    for label, found in ((own, adapter), (other, given)):
        if found is not None:
            check_finite(adapter_slots.parse_weights(found).items(), label=label)
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch: what is copied to the meta device leaves no content there
        with _said_of(own) if adapter is not None else nullcontext():
            slots = adapter_slots.attach(policy, config.learner.lora, adapter, seed=config.run.seed)
        if given is not None:
            with _said_of(other):
                adapter_slots.add_given(slots, given)
    return slots


@contextmanager
def _said_of(label: str) -> Iterator[None]:
    try:
        yield
    except ModelError as error:
        raise ModelError(f"{label}; {error}") from None


def check_weights(models: Sequence[NamedModel]) -> None:
    """Read every weight of every model.

    Raises:
        ModelError: one is NaN or infinite.
    """
    from online_dpo.models.loading import check_finite, stored_tensors

    for model in models:
        check_finite(stored_tensors(model.info), label=model.label)
