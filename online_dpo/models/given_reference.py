"""`reference: {type: path}`: a LoRA adapter of the policy's base, or another model that knows the same tokens."""

from __future__ import annotations

from typing import TypeAlias

from online_dpo.config.control import PathReference
from online_dpo.config.run import RunConfig
from online_dpo.errors import ConfigError, ModelError
from online_dpo.models import tokenizer
from online_dpo.models.adapters import read_adapter
from online_dpo.models.inspection import ModelInfo, inspect_model
from online_dpo.models.locating import locate
from online_dpo.types import Adapter

FIELD = "reference.path"

GivenReference: TypeAlias = Adapter | ModelInfo


def inspect_reference(config: RunConfig, model: ModelInfo) -> GivenReference | None:
    """Look at a given reference without loading it; None where the config gives none.

    Args:
        config: of the run.
        model: the policy's base.

    Raises:
        ModelError: there is no such model or adapter, it is damaged, or it has another vocabulary.
        ConfigError: the longest prompt and completion do not fit into its context.
    """
    section = config.reference
    if not isinstance(section, PathReference):
        return None
    folder = locate(section.path, field=FIELD)
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        return read_adapter(section.path, base=model, field=FIELD)
    reference = inspect_model(folder, field=FIELD)
    check_same_vocabulary(model, reference, f"{FIELD} is {section.path}")
    if reference.max_model_len is not None and config.max_model_len > reference.max_model_len:
        raise ConfigError(
            f"{FIELD} is {section.path}, whose context is {reference.max_model_len} tokens; prompts.max_tokens and "
            f"sampling.max_tokens are together {config.max_model_len}: lower either, or give another reference"
        )
    return reference


def check_same_vocabulary(model: ModelInfo, reference: ModelInfo, label: str) -> None:
    """A reference scores the policy's token ids, so each must stand for the same token there.

    Args:
        model: the policy's base.
        reference: may know further tokens.
        label: the start of errors.

    Raises:
        ModelError: a token of the policy has another id, or none, or the files do not tell.
    """
    remedy = "give a model with the tokenizer of model.path, or a LoRA adapter of model.path"
    (ours, ours_known), (theirs, theirs_known) = (
        tokenizer.vocabulary(info.folder, label) for info in (model, reference)
    )
    if not (ours_known and theirs_known):
        if tokenizer.vocabulary_digest(model.folder) == tokenizer.vocabulary_digest(reference.folder):
            return
        raise ModelError(
            f"{label}, whose vocabulary cannot be compared with that of model.path, since one of them has no "
            f"tokenizer.json; save both tokenizers with AutoTokenizer.from_pretrained(...).save_pretrained(...)"
        )
    different = sorted(token for token, index in ours.items() if theirs.get(token) != index)
    if different:
        token = different[0]
        there = f"id {theirs[token]}" if token in theirs else "absent"
        raise ModelError(
            f"{label}, whose vocabulary is not that of model.path: token {token!r} has id {ours[token]} in the policy "
            f"and is {there} in the reference ({len(different)} of {len(ours)} tokens differ): {remedy}"
        )
