"""The load script in short: every vote that was said to be saved is in the store."""

from __future__ import annotations

import importlib.util
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "annotation_load.py"


def test_twenty_people_at_once_lose_no_vote(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("annotation_load", SCRIPT)
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    *table, last = script.measure(tmp_path, 20, 2.0, 0.2)
    assert last.endswith("; lost: 0; doubled: 0; requests that failed: 0"), last
    assert int(last.split(";")[0].rpartition(" ")[2]) >= 20 and table[3].startswith("| vote |")
