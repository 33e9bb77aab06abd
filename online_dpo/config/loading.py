"""YAML and dotted overrides -> `RunConfig`, with errors that name the field, the value and the remedy."""

from __future__ import annotations

import difflib
import json
import types
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, Tag, ValidationError
from yaml import YAMLError

from online_dpo.config.base import Section
from online_dpo.config.judges import JudgeSection
from online_dpo.config.run import EvaluationSection, RunConfig
from online_dpo.errors import ConfigError

AnySection = typing.TypeVar("AnySection", bound=Section)
_UNIONS = (typing.Union, types.UnionType)


class JudgesConfig(Section):
    """As much of a config as judging alone needs."""

    judge: JudgeSection | None = None
    evaluation: EvaluationSection = EvaluationSection()


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
        raise ConfigError("\n".join(_explain_all(error.errors()))) from None


def _merge(source: str | Path | dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """The file's mapping under the overrides."""
    raw = source if isinstance(source, dict) else _read_yaml(Path(source))
    given = OmegaConf.merge(*map(_read_override, overrides)) if overrides else OmegaConf.create({})
    try:
        merged = OmegaConf.merge(OmegaConf.create(raw), given)
        data = typing.cast(dict[str, Any], OmegaConf.to_container(merged, resolve=True))
        chosen = typing.cast(dict[str, Any], OmegaConf.to_container(given, resolve=True))
    except OmegaConfBaseException as error:
        first = str(error).strip().splitlines()[0]
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


def changes(old: RunConfig, new: RunConfig) -> list[tuple[str, Any, Any, bool]]:
    """`(field, old value, new value, may change on resume)` of every difference."""
    before, after = dict(_leaves(old)), dict(_leaves(new))
    found = []
    for key in sorted({**before, **after}):
        if before.get(key, (None, False))[0] != after.get(key, (None, False))[0]:
            old_value, old_free = before.get(key, (None, True))
            new_value, new_free = after.get(key, (None, True))
            found.append((key, old_value, new_value, old_free and new_free))
    return found


def check_resumable(old: RunConfig, new: RunConfig) -> list[str]:
    """Refuse a continuation that would change the data.

    Returns:
        One line for each difference that is allowed.

    Raises:
        ConfigError: a field that shapes the data differs; the message has its old and new value.
    """
    allowed: list[str] = []
    refused: list[str] = []
    raises_beta = "raise_beta" in [getattr(config.drift, "action", None) for config in (old, new)]
    for key, before, after, free in changes(old, new):
        # The length of the run only matters to schedules that are stretched over it.
        if key == "run.rounds":
            free = new.learner.schedule == "constant" and not new.objective.depends_on_run_length
        # A budget that only warns or stops does not change what is trained on.
        if key in ("drift.max_kl", "drift.action"):
            free = not raises_beta
        line = f"{key} was {json.dumps(before)} and is now {json.dumps(after)}"
        (allowed if free else refused).append(line)
    if refused:
        raise ConfigError(
            "\n".join(refused)
            + "\nthese fields change the data; set them back, or start a new run with another run.name"
        )
    return allowed


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


def _explain_all(problems: Sequence[Any]) -> list[str]:
    """One sentence for each field; what the members of a union such as `auto` or a number want is told together."""
    sentences: dict[str, str] = {}
    for problem in problems:
        location = [str(part) for part in problem["loc"]]
        # Pydantic puts the members of a union into the location; they are no keys of the file.
        path = ".".join(part for i, part in enumerate(location) if not _is_member(location, i))
        if path in sentences and _is_member(location, len(location) - 1):
            sentences[path] += f" or {_wish(problem)}"
        else:
            sentences[path] = _explain(problem, location, path)
    return list(sentences.values())


def _explain(problem: Any, location: list[str], path: str) -> str:
    """One sentence: field, value, remedy."""
    kind, value = problem["type"], json.dumps(problem.get("input"), default=str)
    known = _known_keys(location)
    if kind == "extra_forbidden":
        close = difflib.get_close_matches(location[-1], known, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]}?" if close else f"known here: {', '.join(sorted(known))}"
        return f"{path} is not a known key; {hint}"
    if kind == "missing":
        return f"{path} is missing; it has no default, so set it"
    if kind == "union_tag_not_found":
        return f"{path}.type is missing; choose one of {', '.join(_union_tags(_annotation_at(location)))}"
    if kind == "union_tag_invalid":
        tags = problem["ctx"]["expected_tags"].replace("'", "")
        return f"{path}.type is {problem['ctx']['tag']}; it must be one of {tags}"
    if kind == "value_error":
        message = str(problem["ctx"]["error"])
        return f"{path} {message}" if path and not message.startswith(path.split(".")[0] + ".") else message
    if kind in ("model_type", "model_attributes_type"):
        keys = ", ".join(_known_keys([*location, ""])) or "type"
        return f"{path} is {value}; it must be a mapping with some of the keys {keys}"
    if kind == "string_pattern_mismatch":  # only names have a pattern
        name = path.removesuffix(".[key]")
        return f"{name} is {value}; use letters, digits, '.', '_' and '-', and begin with a letter or digit"
    if location[-1] == "[key]":  # of a mapping whose keys are few
        return f"{path.removesuffix('.[key]')} is not a known key; it must be {_wish(problem)}"
    return f"{path} is {value}; it must be {_wish(problem)}"


def _wish(problem: Any) -> str:
    """What pydantic would accept, as the end of a sentence."""
    return str(problem["msg"]).removeprefix("Input should be ")


def _is_member(location: list[str], index: int) -> bool:
    return typing.get_origin(_annotation_at(location[:index])) in _UNIONS


def _known_keys(location: list[str]) -> list[str]:
    model = _annotation_at(location[:-1])
    return list(model.model_fields) if isinstance(model, type) and issubclass(model, BaseModel) else []


def _annotation_at(location: list[str]) -> Any:
    """The type behind a pydantic error location, walking through sections, mappings and tagged unions."""
    current: Any = RunConfig
    for part in location:
        current = _strip(current)
        tags = _union_tags(current)
        if part in tags:
            current = tags[part]
        elif isinstance(current, type) and issubclass(current, BaseModel):
            fields = current.model_fields
            if part not in fields:
                return None
            current = fields[part].annotation
        elif typing.get_origin(current) in (dict, list):
            current = typing.get_args(current)[-1]
        else:
            return None
    return _strip(current)


def _strip(annotation: Any) -> Any:
    """Without `Annotated` and without an optional's None."""
    if typing.get_origin(annotation) is typing.Annotated:
        annotation = typing.get_args(annotation)[0]
    members = [m for m in typing.get_args(annotation) if m is not type(None)]
    is_union = typing.get_origin(annotation) in _UNIONS
    return _strip(members[0]) if is_union and len(members) == 1 else annotation


def _union_tags(annotation: Any) -> dict[str, Any]:
    """What tells the members of a union apart: the `type` of sections, or the tags that stand beside the members."""
    annotation = _strip(annotation)
    found: dict[str, Any] = {}
    for member in typing.get_args(annotation) if typing.get_origin(annotation) in _UNIONS else ():
        tags = [extra.tag for extra in typing.get_args(member)[1:] if isinstance(extra, Tag)]
        plain = _strip(member)
        if isinstance(plain, type) and issubclass(plain, BaseModel) and "type" in plain.model_fields:
            tags += typing.get_args(plain.model_fields["type"].annotation)
        found |= dict.fromkeys(tags, plain)
    return found


def _leaves(model: BaseModel, prefix: str = "") -> Iterator[tuple[str, tuple[Any, bool]]]:
    """`(dotted field, (value, changeable))` of every leaf."""
    for name, info in type(model).model_fields.items():
        value, key = getattr(model, name), f"{prefix}{name}"
        if isinstance(value, BaseModel):
            yield from _leaves(value, f"{key}.")
        elif isinstance(value, dict) and any(isinstance(v, BaseModel) for v in value.values()):
            for entry, item in value.items():
                yield from _leaves(item, f"{key}.{entry}.")
        elif isinstance(value, list) and any(isinstance(v, BaseModel) for v in value):
            for entry, item in enumerate(value):
                yield from _leaves(item, f"{key}.{entry}.")
        else:
            extra = info.json_schema_extra
            yield key, (value, isinstance(extra, dict) and bool(extra.get("changeable")))
