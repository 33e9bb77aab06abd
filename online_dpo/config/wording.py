"""What pydantic finds wrong with a config, in sentences that name the field, the value and the remedy."""

from __future__ import annotations

import difflib
import json
import types
import typing
from typing import Any

from pydantic import BaseModel, Tag, ValidationError

from online_dpo.config.words import our_field, our_value
from online_dpo.text_files import shown

MAX_SENTENCES = 12
_UNIONS = (typing.Union, types.UnionType)


def explain(error: ValidationError, root: type[BaseModel]) -> str:
    """One line for each field that is wrong, with its value and the remedy.

    A field that takes `auto` or a number has one error for each; they become one sentence.

    Args:
        error: of a file's content.
        root: the section that is the whole file.
    """
    sentences: dict[str, str] = {}
    for problem in error.errors():
        location = [str(part) for part in problem["loc"]]
        # Pydantic puts the members of a union into the location; they are no keys of the file.
        path = shown(".".join(part for i, part in enumerate(location) if not _is_member(root, location, i)))
        if path in sentences and _is_member(root, location, len(location) - 1):
            sentences[path] += f" or {_wish(problem)}"
        else:
            sentences[path] = _sentence(problem, root, location, path)
    lines = list(sentences.values())
    left = len(lines) - MAX_SENTENCES
    return "\n".join([*lines[:MAX_SENTENCES], *([f"and {left} more fields are wrong"] if left > 0 else [])])


def _sentence(problem: Any, root: type[BaseModel], location: list[str], path: str) -> str:
    """Field, value, remedy."""
    kind, value = problem["type"], _shown(problem.get("input"))
    known = _known_keys(root, location)
    if kind == "extra_forbidden":
        if (ours := our_field(path)) is not None:
            return f"{path} is not a known key; here it is {ours}"
        close = difflib.get_close_matches(location[-1], known, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]}?" if close else f"known here: {', '.join(sorted(known))}"
        return f"{path} is not a known key; {hint}"
    if kind == "missing":
        return f"{path} is missing; it has no default, so set it"
    if kind == "union_tag_not_found":
        return f"{path}.type is missing; choose one of {', '.join(_union_members(_annotation_at(root, location)))}"
    if kind == "union_tag_invalid":
        tags, tag = problem["ctx"]["expected_tags"].replace("'", ""), problem["ctx"]["tag"]
        return f"{path}.type is {shown(tag)}; it must be one of {tags}{_also(f'{path}.type', tag, tags)}"
    if kind == "value_error":
        message = " ".join(str(problem["ctx"]["error"]).split())
        return f"{path} {message}" if path and not message.startswith(path.split(".")[0] + ".") else message
    if kind in ("model_type", "model_attributes_type"):
        keys = ", ".join(_known_keys(root, [*location, ""])) or "type"
        return f"{path} is {value}; it must be a mapping with some of the keys {keys}"
    if kind == "string_pattern_mismatch":  # only names have a pattern
        name = path.removesuffix(".[key]")
        if name == "run.name":
            return f"{name} is {value}; it is the name of a folder: it may not begin with '.' or hold '/'"
        return f"{name} is {value}; use letters, digits, '.', '_' and '-', and begin with a letter or digit"
    if location[-1] == "[key]":  # of a mapping whose keys are few
        return f"{path.removesuffix('.[key]')} is not a known key; it must be {_wish(problem)}"
    if kind == "invalid_key":
        return f"{path} is not a known key; a key is text: write it in quotes"
    if kind == "string_type":
        return f"{path} is {value}; it must be text{_quoted(problem.get('input'))}"
    return f"{path} is {value}; it must be {_wish(problem)}{_also(path, problem.get('input'), _wish(problem))}"


def _quoted(value: Any) -> str:
    """What to do about text that YAML takes for something else."""
    if not isinstance(value, str | bool | int | float | None):
        return ""
    example = "'off'" if isinstance(value, bool) else f"'{_shown(value)}'"
    return f": YAML reads off, no, on, yes, null and numbers as values, so write it in quotes, such as {example}"


def _also(path: str, value: Any, allowed: str) -> str:
    """The hint about a value that other trainers know."""
    ours = our_value(path, value, allowed)
    return "" if ours is None else f"; did you mean {ours}?"


def _shown(value: Any) -> str:
    """A value as JSON, shortened; integers of thousands of digits have no decimal form that Python would write."""
    try:
        return shown(json.dumps(value, default=str))
    except (ValueError, TypeError, RecursionError):
        return f"a {type(value).__name__} that is too large to show"


def _wish(problem: Any) -> str:
    """What pydantic would accept, as the end of a sentence."""
    return " ".join(str(problem["msg"]).split()).removeprefix("Input should be ")


def _is_member(root: type[BaseModel], location: list[str], index: int) -> bool:
    return typing.get_origin(_annotation_at(root, location[:index])) in _UNIONS


def _known_keys(root: type[BaseModel], location: list[str]) -> list[str]:
    model = _annotation_at(root, location[:-1])
    return list(model.model_fields) if isinstance(model, type) and issubclass(model, BaseModel) else []


def _annotation_at(root: type[BaseModel], location: list[str]) -> Any:
    """The type behind a pydantic error location, walking through sections, mappings and tagged unions."""
    current: Any = root
    for part in location:
        current = _strip_optional(current)
        tags = _union_members(current)
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
    return _strip_optional(current)


def _strip_optional(annotation: Any) -> Any:
    """The annotation without `Annotated` and without an optional's None."""
    if typing.get_origin(annotation) is typing.Annotated:
        annotation = typing.get_args(annotation)[0]
    members = [m for m in typing.get_args(annotation) if m is not type(None)]
    is_union = typing.get_origin(annotation) in _UNIONS
    return _strip_optional(members[0]) if is_union and len(members) == 1 else annotation


def _union_members(annotation: Any) -> dict[str, Any]:
    """The members of a union by what tells them apart: the `type` of sections, or the tags beside the members."""
    annotation = _strip_optional(annotation)
    found: dict[str, Any] = {}
    for member in typing.get_args(annotation) if typing.get_origin(annotation) in _UNIONS else ():
        tags = [extra.tag for extra in typing.get_args(member)[1:] if isinstance(extra, Tag)]
        plain = _strip_optional(member)
        if isinstance(plain, type) and issubclass(plain, BaseModel) and "type" in plain.model_fields:
            tags += typing.get_args(plain.model_fields["type"].annotation)
        found |= dict.fromkeys(tags, plain)
    return found
