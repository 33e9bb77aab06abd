"""YAML and dotted overrides -> `RunConfig`, and back to YAML."""

from __future__ import annotations

import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError
from yaml import YAMLError

from online_dpo.config.base import Section
from online_dpo.config.evaluation import EvaluationSection
from online_dpo.config.judges.section import JudgeSection
from online_dpo.config.run import RunConfig
from online_dpo.config.wording import explain
from online_dpo.errors import ConfigError, first_line

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


def _validate(model: type[AnySection], data: dict[str, Any]) -> AnySection:
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise ConfigError(explain(error)) from None


def _merge(source: str | Path | dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """The file's mapping under the overrides."""
    raw = source if isinstance(source, dict) else _read_yaml(Path(source))
    given = OmegaConf.merge(*map(_read_override, overrides)) if overrides else OmegaConf.create({})
    try:
        merged = OmegaConf.merge(OmegaConf.create(raw), given)
        data = typing.cast(dict[str, Any], OmegaConf.to_container(merged, resolve=True))
        chosen = typing.cast(dict[str, Any], OmegaConf.to_container(given, resolve=True))
    except OmegaConfBaseException as error:
        first = first_line(error)
        raise ConfigError(
            f"the config cannot be put together: {first}; write ${{section.field}} of a field that has a value, or "
            f"${{oc.env:NAME}} of a variable that is set"
        ) from None
    # An override of `type` chooses another member of a union: the file's fields of the old member would then be
    # unknown keys, so the section starts afresh from the overrides.
    for section, values in chosen.items():
        old = raw.get(section)
        if (
            isinstance(values, dict)
            and isinstance(old, dict)
            and values.get("type", old.get("type")) != old.get("type")
        ):
            data[section] = values
    return data


def dump_config(config: RunConfig) -> str:
    """The resolved config as YAML, every default written out."""
    return OmegaConf.to_yaml(OmegaConf.create(config.model_dump(mode="json")))


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ConfigError(
            f"config file {path} does not exist; give the path of a YAML file, such as configs/reviews.yaml"
        )
    try:
        raw = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError, OSError) as error:
        first = " ".join(str(error).split())[:300]
        raise ConfigError(f"config file {path} is not readable YAML: {first}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"config file {path} holds {type(raw).__name__}; it must be a mapping of sections")
    return typing.cast(dict[str, Any], raw)


def _read_override(override: str) -> Any:
    if "=" not in override or override.startswith("="):
        raise ConfigError(f"override {override!r} is not of the form section.field=value, such as run.rounds=3")
    try:
        return OmegaConf.from_dotlist([override])
    except (OmegaConfBaseException, YAMLError) as error:
        first = " ".join(str(error).split())[:200]
        raise ConfigError(f"override {override!r} cannot be read ({first}); write the value as in YAML") from None
