"""Samples of finished rounds, kept: a finished round never changes, and reading its answers takes its time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from online_dpo.config.run import RunConfig
from online_dpo.reports.page.answers.sampling import sample_round
from online_dpo.store.files import Files
from online_dpo.store.round_store import RoundStore

FORMAT = 3
"""Of a kept sample; another one is made anew."""
FOLDER = "report"
"""In the run directory: the page that is written after each round, and what it is made of. Nothing else reads it."""


class SampleCache:
    """Of one run, in memory, and beneath its run directory where the process that writes the run asks for it."""

    def __init__(self, run_dir: Path, *, writable: bool = False) -> None:
        self._files = Files(run_dir, writable=writable)
        self._known: dict[int, tuple[str, dict[str, Any]]] = {}  # round -> fingerprint, sample

    def get(self, config: RunConfig | None, part: RoundStore) -> dict[str, Any]:
        """The sample of a finished round, see `sample_round`."""
        fingerprint = part.fingerprint() or ""
        known = self._known.get(part.index)
        if known is None or known[0] != fingerprint:
            sample = self._read(part.index, fingerprint)
            if sample is None:
                sample = sample_round(config, part)
                self._write(part.index, fingerprint, sample)
            self._known[part.index] = known = (fingerprint, sample)
        return known[1]

    def _read(self, index: int, fingerprint: str) -> dict[str, Any] | None:
        try:
            kept = json.loads(self._files.get(_key(index)))
            sample = kept["sample"] if (kept["format"], kept["of"]) == (FORMAT, fingerprint) else None
        except (OSError, ValueError, KeyError, TypeError):
            return None  # none, or half of one: it is made anew
        return sample if isinstance(sample, dict) else None

    def _write(self, index: int, fingerprint: str, sample: dict[str, Any]) -> None:
        # What is damaged may be put back, and is then to be read again.
        if self._files.writable and not sample["problems"]:
            values = {"format": FORMAT, "of": fingerprint, "sample": sample}
            self._files.put(_key(index), json.dumps(values, separators=(",", ":")).encode())


def _key(index: int) -> str:
    return f"{FOLDER}/rounds/{index:05d}.json"
