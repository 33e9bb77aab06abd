"""What trackers are told of a run's records: the names of figures, the same in every tracker."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from online_dpo.reports.results import EvaluationResult, RoundResult

_LEFT_OUT = ("round", "policy_version", "time", "extra")


def step_figures(data: Mapping[str, Any]) -> dict[str, float]:
    """Of an optimizer step: `step/loss` and so on.

    Args:
        data: of an event of the kind `step`, or its line in `metrics.jsonl`.
    """
    kept = {name: value for name, value in data.items() if name not in ("step", "num_steps", "kind", *_LEFT_OUT)}
    return dict(_numbers(kept, "step/"))


def evaluation_figures(name: str, result: EvaluationResult) -> dict[str, float]:
    """Of a policy on an evaluation set: `evaluation/SET/kl_initial`, `evaluation/SET/judges/JUDGE/mean` and so on."""
    return dict(_numbers(asdict(result), f"evaluation/{name}/"))


def round_figures(result: RoundResult) -> dict[str, float]:
    """Of a finished round. A figure's name is the way to it in `RoundResult`: `learning/loss`."""
    return dict(_numbers(asdict(result), ""))


def _numbers(found: Any, prefix: str) -> Iterator[tuple[str, float]]:
    """`(path, number)` of every finite number; an estimate gives its value and the ends of its interval."""
    if isinstance(found, Mapping):
        for key, value in found.items():
            if key == "extra":  # figures that a newer version or a judge of the user's has, beside the fields
                yield from _numbers(value, prefix)
            elif prefix or key not in _LEFT_OUT:
                yield from _numbers(value, f"{prefix}{key}/")
    elif isinstance(found, tuple) and len(found) == 3 and prefix.endswith(("/gain/", "/win_rate/")):
        for ending, value in zip(("", "_low", "_high"), found, strict=True):
            yield from _numbers(value, f"{prefix.removesuffix('/')}{ending}/")
    elif isinstance(found, int | float) and math.isfinite(found):
        yield prefix.removesuffix("/"), float(found)
