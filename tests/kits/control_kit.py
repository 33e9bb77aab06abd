"""Configs and measurements of runs under a budget or an alarm."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from loop_runs import comparable

from online_dpo.config.control import WATCHED
from online_dpo.config.loading import load_config
from online_dpo.config.run import RunConfig
from online_dpo.loop.control import Measured

COMMON: dict[str, Any] = {
    "model": {"path": "m"},
    "prompts": {"source": "p"},
    "judge": {"type": "python", "target": "j"},
    "evaluation": {"sets": {"heldout": {"source": "h"}}},
}


def config(**sections: Any) -> RunConfig:
    return load_config({**COMMON, **sections})


def measured(kl_initial: float = 0.0, kl_reference: float | None = 0.0, **figures: list[float | None]) -> Measured:
    start = {name: [1.0, 1.0] for name in WATCHED}
    return Measured(
        policy_version=3, kl_initial=kl_initial, kl_reference=kl_reference, sets={"heldout": {**start, **figures}}
    )


def value_of(steps: Generator[Any, None, Any]) -> Any:
    """What a part of the loop returns that has no event to tell of."""
    with pytest.raises(StopIteration) as stopped:
        next(steps)
    return stopped.value.value


def without_warnings(path: Path) -> dict[str, Any]:
    """What must be equal in two runs that differ in their bounds alone."""
    found = comparable(path)
    for line in found["metrics.jsonl"]:
        line.pop("warnings", None)
    return {name: content for name, content in found.items() if not name.startswith(("config.yaml", "run."))}
