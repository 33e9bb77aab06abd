"""Processes that take their steps in turn, so that a busy moment of the machine hits all of them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# The benchmark


def start_worker(command: Sequence[str], side: str, folder: Path) -> Any:
    """The process, once it is ready for its first step; its errors go into a file of the folder.

    Args:
        command: of the process.
        side: names it.
        folder: where its errors go.
    """
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with _log(side, folder).open("w") as log:
        worker = subprocess.Popen(command, text=True, stderr=log, **pipes)
    read_reply(worker, side, folder)
    return worker


def tell(worker: Any, word: str) -> None:
    """Say "step" or "end"."""
    print(word, file=worker.stdin, flush=True)


def read_reply(worker: Any, side: str, folder: Path) -> Any:
    """What the process says next. The benchmark ends with the process's last errors if it dies instead."""
    for line in worker.stdout:
        if line.startswith("reply "):
            return json.loads(line.removeprefix("reply "))
    raise SystemExit(f"{side} died:\n" + "\n".join(_log(side, folder).read_text().splitlines()[-25:]))


def _log(side: str, folder: Path) -> Path:
    return folder / f"{side.replace('/', '-')}.log"


# Its workers


def reply(value: Any = None) -> None:
    """Say that a step was taken, or that the first may come."""
    print("reply " + json.dumps(value), flush=True)


def wait_for_step() -> bool:
    """Whether another step is wanted."""
    return sys.stdin.readline().strip() == "step"
