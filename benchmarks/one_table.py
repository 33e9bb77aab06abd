"""Rows of the table that `make bench` prints. A script notes what it measured, beside its peer or floor and the aim."""

from __future__ import annotations

import json
import os
from pathlib import Path

PLACE = "BENCH_ROWS"
"""The environment variable that names the file of rows; without it nothing is noted."""


def note(what: str, measured: float, *, unit: str, beside: str = "", other: float | None = None, aim: str = "") -> None:
    """Add a row.

    Args:
        what: was measured.
        measured: its median.
        unit: of it.
        beside: what it is compared with, a peer or a floor.
        other: the median of that, in the same unit.
        aim: what the ratio, or the measured value where there is none, should be.
    """
    if place := os.environ.get(PLACE):
        row = {"what": what, "measured": measured, "unit": unit, "beside": beside, "other": other, "aim": aim}
        with Path(place).open("a") as file:
            file.write(json.dumps(row) + "\n")


def show(place: Path) -> str:
    """All rows as one Markdown table; the ratio is measured over other."""
    lines = ["| | measured | beside | | ratio | aim |", "|---|---|---|---|---|---|"]
    for row in map(json.loads, place.read_text().splitlines()):
        measured = f"{row['measured']:.3g} {row['unit']}"
        other, ratio = "", ""
        if row["other"] is not None:
            other, ratio = f"{row['other']:.3g} {row['unit']}", f"{row['measured'] / row['other']:.2f}"
        lines.append(f"| {row['what']} | {measured} | {row['beside']} | {other} | {ratio} | {row['aim']} |")
    return "\n".join(lines)
