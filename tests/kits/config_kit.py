"""The least config that loads, and those that are documented."""

from __future__ import annotations

from pathlib import Path
from typing import Any

CONFIGS = Path(__file__).parents[2] / "configs"
REWARD_MODEL = CONFIGS / "reward-model.yaml"
RUN_CONFIGS = sorted({*CONFIGS.glob("*.yaml")} - {REWARD_MODEL})
"""The documented configs of `online-dpo run`."""

BASE: dict[str, Any] = {
    "model": {"path": "somewhere"},
    "prompts": {"source": "prompts.jsonl"},
    "judge": {"type": "python", "target": "judge.py:score"},
}
