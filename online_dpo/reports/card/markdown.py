"""Texts of users as Markdown that shows them and does nothing else."""

from __future__ import annotations

import re

from online_dpo.reports.page.safe_text import visible

_ACTS = re.compile(r"([\\`*_\[\]#|~$])")
_MARKUP = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


def plain(text: str) -> str:
    """One line that no reader of Markdown takes for anything but text."""
    line = " ".join(visible(text).split())
    return _ACTS.sub(r"\\\1", re.sub("[&<>]", lambda match: _MARKUP[match.group()], line))


def fenced(text: str, language: str) -> str:
    """A block of code that nothing inside can end."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{visible(text).rstrip()}\n{fence}"
