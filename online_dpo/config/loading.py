"""YAML and dotted overrides -> `RunConfig`, and back to YAML."""

from __future__ import annotations

import re
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from pydantic import ValidationError

from online_dpo.config.base import Section
from online_dpo.config.evaluation import EvaluationSection
from online_dpo.config.judges.section import JudgeSection
from online_dpo.config.reward_model.section import RewardModelConfig
from online_dpo.config.run import RunConfig
from online_dpo.config.wording import explain
from online_dpo.config.words import FLAG
from online_dpo.config.yaml_text import expect_moderate, read_mapping, reason
from online_dpo.errors import ConfigError
from online_dpo.text_files import shown

_INDEX = re.compile(r"[.\[]\d")
_INTERPOLATION = re.compile(r"(\\*)\$\{")

AnySection = typing.TypeVar("AnySection", bound=Section)


class JudgesConfig(Section):
    """As much of a config as judging alone needs."""

    judge: JudgeSection | None = None
    """The training judge. null: there is none."""
    evaluation: EvaluationSection = EvaluationSection()
    """The section whose judges may be asked."""


def load_config(source: str | Path | dict[str, Any], overrides: Sequence[str] = ()) -> RunConfig:
    """Read a config and check it.

    Args:
        source: a YAML file, or its content as a mapping.
        overrides: `section.field=value` strings; values are YAML.

    Raises:
        ConfigError: the file is missing or malformed, a key is unknown, a value is wrong.
    """
    return _validate(RunConfig, _merge(source, overrides))


def load_judges(source: str | Path | dict[str, Any], overrides: Sequence[str] = ()) -> RunConfig | JudgesConfig:
    """As `load_config`, for a file that may have nothing but the sections of judges.

    Raises:
        ConfigError: as `load_config`.
    """
    data = _merge(source, overrides)
    if data.keys() <= JudgesConfig.model_fields.keys():
        return _validate(JudgesConfig, data)
    return _validate(RunConfig, data)


def load_reward_model(source: str | Path | dict[str, Any], overrides: Sequence[str] = ()) -> RewardModelConfig:
    """As `load_config`, for the config of `online-dpo reward-model`.

    Raises:
        ConfigError: as `load_config`.
    """
    return _validate(RewardModelConfig, _merge(source, overrides))


def _validate(model: type[AnySection], data: dict[str, Any]) -> AnySection:
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise ConfigError(explain(error, model)) from None
    except RecursionError as error:
        raise ConfigError(f"the config cannot be read: {reason(error)}") from None


def _merge(source: str | Path | dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """The file's mapping under the overrides."""
    raw = source if isinstance(source, dict) else read_mapping(Path(source))
    given = [_read_override(override) for override in overrides]
    try:
        chosen = OmegaConf.merge(*given) if given else OmegaConf.create({})
        if _INDEX.search(" ".join(override.partition("=")[0] for override in overrides)):
            chosen = OmegaConf.create(_whole_lists(OmegaConf.to_container(chosen), raw, ""))
        merged = OmegaConf.merge(OmegaConf.create(raw), chosen)
        data = typing.cast(dict[str, Any], OmegaConf.to_container(merged, resolve=True))
    except ConfigError:
        raise
    # Besides OmegaConf's own errors: TypeError of a list over a mapping, RecursionError, and whatever resolvers raise.
    except Exception as error:
        remedy = "; write ${section.field} of a field that has a value, or ${oc.env:NAME} of a variable that is set"
        if isinstance(error, TypeError):
            remedy = ""
        raise ConfigError(f"the config cannot be put together: {reason(error)}{remedy}") from None
    expect_text(data)
    # An override of `type` chooses another member of a union: the file's fields of the old member would then be
    # unknown keys, so the section starts afresh from the overrides.
    for section, values in typing.cast(dict[str, Any], OmegaConf.to_container(chosen, resolve=False)).items():
        old, new = raw.get(section), data[section]
        if isinstance(values, dict) and isinstance(old, dict) and new.get("type") != old.get("type"):
            data[section] = _only(new, values)
    return data


def _whole_lists(given: Any, there: Any, path: str) -> Any:
    """Overrides with the lists of the file in full, where they name entries by number: `prompts.sources.0.weight=2`.

    Raises:
        ConfigError: a list of the file has no such entry.
    """
    if not isinstance(given, dict):
        return given
    if isinstance(there, dict):
        return {key: _whole_lists(value, there.get(key), f"{path}.{key}".lstrip(".")) for key, value in given.items()}
    if not isinstance(there, list):
        return given
    if strange := [key for key in given if not str(key).isdecimal() or int(key) >= len(there)]:
        raise ConfigError(f"{path}.{strange[0]} is not there; {path} is a list of {len(there)}, numbered from 0")
    changed = {int(key): value for key, value in given.items()}
    entries = []
    for index, entry in enumerate(there):
        value = _whole_lists(changed[index], entry, f"{path}.{index}") if index in changed else entry
        if isinstance(value, dict) and isinstance(entry, dict):
            value = OmegaConf.to_container(OmegaConf.merge(OmegaConf.create(entry), OmegaConf.create(value)))
        entries.append(value)
    return entries


def _only(data: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """The part of `data` whose keys were given."""
    return {
        key: _only(data[key], value) if isinstance(value, dict) and isinstance(data[key], dict) else data[key]
        for key, value in given.items()
    }


def expect_text(value: Any, path: str = "") -> None:
    """Refuse halves of surrogate pairs, which YAML can spell and no file can hold.

    Raises:
        ConfigError: names the field.
    """
    if isinstance(value, dict):
        for key, part in value.items():
            expect_text(key, path)
            expect_text(part, f"{path}.{key}".lstrip("."))
    elif isinstance(value, list):
        for part in value:
            expect_text(part, path)
    elif isinstance(value, str) and any("\ud800" <= character <= "\udfff" for character in value):
        raise ConfigError(
            f"{shown(ascii(path))} has {shown(ascii(value))}, which is no Unicode text; write it as UTF-8"
        )


def dump_config(config: Section) -> str:
    """A resolved config as YAML, every default written out; what loaded it reads the same config from that."""
    return to_yaml(config.model_dump(mode="python"))


def to_yaml(mapping: dict[str, Any]) -> str:
    """A mapping as YAML from which the same is read again, whatever its texts look like."""
    return OmegaConf.to_yaml(OmegaConf.create(_plain(mapping)))


def _plain(value: Any) -> Any:
    """Lists for tuples, and text that OmegaConf does not take for an interpolation."""
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    # A backslash before `${` makes it plain; backslashes before that one are halved, so they are doubled here.
    return _INTERPOLATION.sub(r"\1\1\\${", value) if isinstance(value, str) else value


def _read_override(override: str) -> Any:
    key, equals, value = override.partition("=")
    if not equals or not all(key.split(".")):
        raise ConfigError(f"override {shown(override)!r} is not of the form section.field=value, such as run.rounds=3")
    if key.startswith(("-", "+", "~")):
        raise ConfigError(FLAG.format(given=shown(override), right=shown(override.lstrip("-+~"))))
    expect_text(override, "an override")
    try:
        expect_moderate(value)
        return OmegaConf.from_dotlist([override])
    except Exception as error:  # as in `read_mapping`
        raise ConfigError(
            f"override {shown(override)!r} cannot be read ({reason(error)[:200]}); write the value as in YAML"
        ) from None
