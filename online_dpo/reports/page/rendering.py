"""Templates -> one HTML file that loads nothing, runs nothing but our own script, and shows every text as text."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from online_dpo.reports.page.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, draw, number
from online_dpo.reports.page.safe_text import script_json, visible

STYLE = ("page.css", "answers.css")
SCRIPT = ("page.js", "answers.js", "held_out.js")  # in one script: later ones use what earlier ones define

LIVE = "live.js"


def render(
    template: str, *, data: Any = None, further: Sequence[str] = (), live: str | None = None, **values: Any
) -> str:
    """A page.

    Args:
        template: its name in `templates`, which extends `base.html.jinja`.
        data: JSON values for the script, which puts them on the page as text.
        further: style sheets and scripts of `templates` that come after those of every page.
        live: of a page that a server keeps up to date, the digest of what it shows; its script asks for newer ones.
        values: of the template; texts among them are escaped.
    """
    files = (*STYLE, *SCRIPT, *further, *(() if live is None else (LIVE,)))
    style, script = (_joined(tuple(name for name in files if name.endswith(kind))) for kind in (".css", ".js"))
    policy = (
        f"default-src 'none'; style-src {_source(style)}; script-src {_source(script)}; img-src data:; "
        f"base-uri 'none'; form-action 'none'" + ("" if live is None else "; connect-src 'self'")
    )
    return (
        _environment()
        .get_template(template)
        .render(
            policy=policy,
            live=live,
            style=Markup(style),
            script=Markup(script),
            data=Markup(script_json(data if data is not None else {})),
            **values,
        )
    )


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("online_dpo.reports.page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )
    environment.filters |= {"number": number, "draw": draw}
    environment.globals |= {
        "width": WIDTH,
        "height": HEIGHT,
        "left": LEFT,
        "right": RIGHT,
        "top": TOP,
        "bottom": BOTTOM,
    }
    return environment


def _shown(value: Any) -> Any:
    """What a template prints: texts are made `visible`, and autoescape does the rest."""
    return value if isinstance(value, Markup | int | float) else visible(str(value))


@cache
def _joined(names: tuple[str, ...]) -> str:
    folder = resources.files("online_dpo.reports.page") / "templates"
    return "\n".join((folder / name).read_text(encoding="utf-8") for name in names)


def _source(text: str) -> str:
    """A content security policy's name for exactly this script or style."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
