"""What a shell completes: the fields of a config, as `section.field=`."""

from __future__ import annotations

import typing
from collections.abc import Iterator
from typing import Any, Literal

from pydantic import BaseModel

from online_dpo.config.run import RunConfig


def complete_override(incomplete: str) -> list[str]:
    """The overrides that begin like this: sections up to their dot, then fields, then the values of a choice."""
    section = incomplete.rpartition(".")[0] if "=" not in incomplete else ""
    found = dict.fromkeys(name for name in _overrides(RunConfig, "", set()) if name.startswith(incomplete))
    if "=" in incomplete:
        return [name for name in found if not name.endswith("=")]
    # One level at a time: a section with all that lies below it would be pages.
    depth = len(section) + 1 if section else 0
    parts = (name.split("=")[0] for name in found)
    return sorted({_up_to_next(name, depth) for name in parts})


def _up_to_next(name: str, depth: int) -> str:
    dot = name.find(".", depth)
    return f"{name}=" if dot < 0 else name[: dot + 1]


def _overrides(section: type[BaseModel], path: str, outer: set[type[BaseModel]]) -> Iterator[str]:
    """`a.b=` of every field, and `a.b=value` of every value of a choice."""
    for name, field in section.model_fields.items():
        place = f"{path}.{name}".lstrip(".")
        inner = [part for part in _parts(field.annotation) if isinstance(part, type) and issubclass(part, BaseModel)]
        for model in inner:
            if model not in outer:  # a judge may hold judges
                yield from _overrides(model, place, {*outer, section})
        if not inner:
            yield f"{place}="
            choices = [part for part in _parts(field.annotation) if isinstance(part, str | int)]
            yield from (f"{place}={value}" for value in choices)


def _parts(annotation: Any) -> Iterator[Any]:
    """The types that a value may have, and the values of a Literal."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        yield from arguments
    elif origin is typing.Annotated:
        yield from _parts(arguments[0])
    elif arguments and origin not in (dict, list, tuple):
        for argument in arguments:
            yield from _parts(argument)
    elif annotation is bool:
        yield from ("true", "false")
    elif not arguments:
        yield annotation
