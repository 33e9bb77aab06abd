"""Scripts and cards that exports write."""

from __future__ import annotations

import json
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


def _literal(value: Any) -> str:
    """A value as Python source, with texts in double quotes."""
    return json.dumps(value, ensure_ascii=False) if type(value) is str else repr(value)


_ENVIRONMENT.filters["literal"] = _literal


def render(template: str, **values: Any) -> str:
    """A template with its values."""
    return _ENVIRONMENT.get_template(template).render(values)


def one_line(name: str) -> str:
    """A run's name, fit for a docstring and a comment."""
    return name.encode("unicode_escape").decode().replace('"', "'").replace("\\", "/")
