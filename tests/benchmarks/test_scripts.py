"""Benchmarks that no other test runs still work with the code that they measure."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("command", "row"),
    [
        ("scaling.py --generators 2 --shards 1 --seconds 0.2 --tokens 8", "| 2 | "),
        ("learning_rate.py 32,64,2,4,2 --rates 1e-3", "| 32, 2 | 1e-3 | "),
        ("memory_growth.py --rounds 4 --dtypes bfloat16", "| judge | bfloat16 | "),
        ("annotation.py --questions 50 --annotators 3 --votes 20 --runs 20", "  one far ahead"),
        ("rounding_by_size.py 32,64,2,4,2 --steps 1 --pairs 1", "| 32, 2 | "),
        (
            "online_vs_trl.py --pairs 2 --new-tokens 4 --steps 3 --set generator.enforce_eager=true",
            "ours over TRL vllm-bf16: ",
        ),
    ],
    ids=lambda value: value.split(".")[0] if ".py" in value else "",
)
def test_a_benchmark_prints_its_table(command: str, row: str) -> None:
    script, *arguments = command.split()
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / script), *arguments],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert any(line.startswith(row) for line in done.stdout.splitlines()), done.stdout
