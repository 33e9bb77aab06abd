"""How a table looks on a terminal."""

from __future__ import annotations

from rich.table import Table


def titled(title: str) -> Table:
    """An empty table under a title."""
    return Table(box=None, padding=(0, 1), title=f"\n{title}", title_justify="left", title_style="bold")


def number(value: float | None) -> str:
    """A figure; empty where there is none."""
    return "" if value is None else f"{value:.3f}"


def percent(share: float | None) -> str:
    """A share as a whole number of per cent; empty where there is none."""
    return "" if share is None else f"{100 * share:.0f} %"
