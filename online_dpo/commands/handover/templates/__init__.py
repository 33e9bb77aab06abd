"""Scripts and cards that exports write."""

from __future__ import annotations

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

_ENVIRONMENT = Environment(
    loader=PackageLoader("online_dpo.commands.handover", "templates"),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
    autoescape=False,  # neither Python nor Markdown is HTML; who fills in a template makes texts fit
)
_ENVIRONMENT.filters["repr"] = repr


def render(template: str, **values: Any) -> str:
    """A template with its values."""
    return _ENVIRONMENT.get_template(template).render(values)


def one_line(name: str) -> str:
    """A run's name, fit for a docstring and a comment."""
    return name.encode("unicode_escape").decode().replace('"', "'").replace("\\", "/")
