"""The least config that loads."""

from __future__ import annotations

from typing import Any

BASE: dict[str, Any] = {
    "model": {"path": "somewhere"},
    "prompts": {"source": "prompts.jsonl"},
    "judge": {"type": "python", "target": "judge.py:score"},
}
