"""The report as a file: written by a run after each of its rounds, and by `online-dpo report`."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from online_dpo.reports.listening import Listener
from online_dpo.reports.page.answers.cache import FOLDER, SampleCache
from online_dpo.reports.page.report import run_page
from online_dpo.reports.results import RoundResult
from online_dpo.store.files import Files
from online_dpo.store.run_store import RunStore

log = logging.getLogger(__name__)
REPORT = f"{FOLDER}/report.html"
"""In the run directory."""


class ReportWriter(Listener):
    """Writes the report after every round. What goes wrong with it is told once, and never stops the run."""

    def __init__(self, store: RunStore, tell: Callable[[str], None]) -> None:
        """Nothing is written yet.

        Args:
            store: of the run, whose lock this process holds.
            tell: takes a line for people.
        """
        self._store, self._tell = store, tell
        self._cache = SampleCache(store.path, writable=True)
        self._has_failed = False

    def round_done(self, result: RoundResult) -> None:
        """Write it anew; only this round's answers are read for it."""
        try:
            put_page(self._store.path / REPORT, run_page(self._store, cache=self._cache))
        except Exception as error:
            log.warning("the report could not be written", exc_info=error)
            if not self._has_failed:
                self._tell(
                    f"warning: the report of round {result.policy_version} could not be written, which does not affect "
                    f"the run: {type(error).__name__}: {error}"
                )
            self._has_failed = True


def put_page(path: Path, html: str) -> None:
    """Write a page; who has it open sees the old one or the new one, never half of one.

    Raises:
        OSError, RunDirectoryError: it cannot be written.
    """
    Files(path.parent, writable=True).put(path.name, html.encode())
