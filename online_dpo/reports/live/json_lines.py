"""A run for programs: one JSON object a line. `docs/monitoring.md` describes them."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from typing import Any, TextIO

from online_dpo.loop.stages import Event
from online_dpo.reports.listening import WARNING, Listener
from online_dpo.reports.metrics import describe_latency
from online_dpo.reports.progress import warnings_of
from online_dpo.types import Verdict
from online_dpo.version import __version__

FORMAT = 1
"""Of the lines: a field that changes its meaning or goes makes it 2; a further field or kind does not."""


class JsonLines(Listener):
    """Writes each line at once."""

    def __init__(self, stream: TextIO) -> None:
        """Write the first line.

        Args:
            stream: takes nothing else.
        """
        self._stream = stream
        self.write("began", format=FORMAT, version=__version__)

    def note(self, line: str) -> None:
        if line.startswith(WARNING):
            self.write("warning", text=line.removeprefix(WARNING))
        else:
            self.write("note", text=line)

    def hear(self, event: Event) -> None:
        self.write(event.kind, round=event.round_index, **_told(event.data))
        for warning in warnings_of(event):
            self.write("warning", round=event.round_index, text=warning)

    def write(self, kind: str, **data: Any) -> None:
        """Write a line.

        Raises:
            OSError: nobody reads any more.
        """
        line = json.dumps({"kind": kind, "time": time.time(), **_plain(data)}, allow_nan=False)
        self._stream.write(line + "\n")
        self._stream.flush()


def _told(data: Mapping[str, Any]) -> dict[str, Any]:
    """An event's data; of verdicts and of seconds of single calls, which may be thousands, what they come to."""
    told = dict(data)
    if "verdicts" in told:
        verdicts: tuple[Verdict, ...] = told.pop("verdicts")
        scores = [verdict.score for verdict in verdicts if verdict.score is not None]
        told["num_verdicts"] = len(verdicts)
        told["num_abstained"] = sum(verdict.reason is not None for verdict in verdicts)
        told["score_mean"] = sum(scores) / len(scores) if scores else None
    if "latencies_s" in told:
        found = told.pop("latencies_s")
        told["latency_s"] = {label: describe_latency(seconds) for label, seconds in found.items() if seconds}
    return told


def _plain(value: Any) -> Any:
    """JSON values; what JSON has no number for is null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(part) for part in value]
    if isinstance(value, bool | int | str) or value is None:
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value)
