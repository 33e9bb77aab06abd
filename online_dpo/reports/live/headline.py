"""The figures that a person looks at first, over rounds: reward, other judges, KL; and how they are drawn as a line."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from online_dpo.text_files import printable
from online_dpo.types import REWARD

BARS, ASCII_BARS = "▁▂▃▄▅▆▇█", "_.-=oO@#"


class Headline:
    """Figures of each policy, version 0 being the initial one."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str], dict[int, float]] = {}  # (set, figure) -> policy version -> value

    def add(self, kind: str, data: Mapping[str, Any]) -> None:
        """Take an event, or a line of `metrics.jsonl`, of any kind."""
        if kind == "evaluated":
            figures = {name: found["mean"] for name, found in data["judges"].items()}
            self._add(data["set"], data["policy_version"], {**figures, "KL": data.get("kl_initial")})
        elif kind == "evaluated_pairs":
            self._add(data["set"], data["policy_version"], {"accuracy": data.get("accuracy")})
        elif kind == "round_done":
            self._add("", data["policy_version"], {REWARD: data.get(REWARD), "loss": data.get("loss")})

    def series(self) -> dict[str, list[float | None]]:
        """Name -> values of the rounds, from the first policy that has one; None where a round has none.

        Where nothing is evaluated, these are the reward of the training samples and the loss.
        """
        sets = dict.fromkeys(name for name, _ in self._found if name)
        found = {}
        for (name, figure), values in self._found.items():
            if bool(name) == bool(sets):
                label = figure if len(sets) < 2 else f"{name} {figure}"
                found[label] = [values.get(version) for version in range(min(values), max(values) + 1)]
        return found

    def _add(self, name: str, version: int, figures: Mapping[str, Any]) -> None:
        for figure, value in figures.items():
            if isinstance(value, int | float) and math.isfinite(value):
                self._found.setdefault((name, figure), {})[version] = float(value)


def sparkline(values: Sequence[float | None], *, width: int, ascii_only: bool = False) -> str:
    """The last values as bars between the lowest and the highest of them; a blank where there is none."""
    bars = ASCII_BARS if ascii_only else BARS
    shown = values[-width:]
    known = [value for value in shown if value is not None]
    if len(known) < 2:
        return ""
    low, span = min(known), max(known) - min(known)
    heights = [3 if not span else round((len(bars) - 1) * ((v - low) / span)) for v in shown if v is not None]
    drawn = iter(heights)
    return "".join(" " if value is None else bars[next(drawn)] for value in shown)


def figure_cells(headline: Headline, *, width: int = 16, ascii_only: bool = False) -> list[str]:
    """`reward 1.234 ▁▃▅`: name, newest value and line of each figure."""
    cells = []
    for name, values in headline.series().items():
        newest = next(value for value in reversed(values) if value is not None)
        line = sparkline(values, width=width, ascii_only=ascii_only)
        cells.append(f"{printable(name)} {newest:.4g} {line}".rstrip())
    return cells
