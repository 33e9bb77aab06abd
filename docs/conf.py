"""Sphinx configuration of the site. `make docs` builds it; nothing is downloaded while it builds."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import generate  # noqa: E402

generate.write_all()

project = "online-dpo"
copyright = "the online-dpo authors"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "_generated", "checklist*.md"]  # an issue's checklist goes when the issue is resolved
html_theme = "furo"
html_title = "online-dpo"
html_static_path: list[str] = []
html_copy_source = False

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3

default_role = "code"  # docstrings write code in single backticks
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
napoleon_google_docstring = True
napoleon_numpy_docstring = False


def escape(app: Any, what: str, name: str, obj: object, options: Any, lines: list[str]) -> None:
    """Take characters of a docstring that mean something to reStructuredText for what they are, code aside."""
    for index, line in enumerate(lines):
        prose_and_code = line.split("`")
        prose_and_code[::2] = [re.sub(r"([|*]|_\b)", r"\\\1", prose) for prose in prose_and_code[::2]]
        lines[index] = "`".join(prose_and_code)


def setup(app: Any) -> None:
    app.connect("autodoc-process-docstring", escape, priority=100)  # before napoleon, which adds markup of its own
