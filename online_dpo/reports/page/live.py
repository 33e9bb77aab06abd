"""The report of a run that goes on: made anew when something was committed that it shows."""

from __future__ import annotations

import hashlib
import json
import threading
from dataclasses import dataclass
from pathlib import Path

from online_dpo.errors import UserError
from online_dpo.reports.page.answers.cache import SampleCache
from online_dpo.reports.page.rendering import render
from online_dpo.reports.page.report import progress, run_page
from online_dpo.reports.page.run_record import RunRecord, collect_record
from online_dpo.store.run_store import RunStore
from online_dpo.store.salvage import read_what_is_left

UNREADABLE = "unreadable"
"""In place of a digest where there is nothing to show."""


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What a page that is open asks for every few seconds."""

    page: str  # a digest of what the report shows: where it differs, the page is old
    progress: str  # a sentence or two about how far the run is; why it cannot be read, where it cannot


class LivePage:
    """Of one run directory, which is only read. Any number of threads may ask."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._cache = SampleCache(run_dir)  # the samples of finished rounds stay in memory
        self._lock = threading.Lock()
        self._made: tuple[str, str] | None = None  # digest, page

    def state(self) -> State:
        """How far the run is, at this moment."""
        with self._lock:
            try:
                store, damage = read_what_is_left(self._run_dir)
                with store:
                    record = collect_record(store, damage)
                    return State(page=_digest(store, record), progress=progress(record))
            except UserError as error:
                return State(page=UNREADABLE, progress=str(error))

    def html(self) -> str:
        """The newest report; where there is nothing to show, a page that says why and waits."""
        state = self.state()
        with self._lock:
            if self._made is None or self._made[0] != state.page or state.page == UNREADABLE:
                self._made = (state.page, self._render(state))
            return self._made[1]

    def _render(self, state: State) -> str:
        try:
            store, damage = read_what_is_left(self._run_dir)
            with store:
                return run_page(store, damage, self._cache, live=state.page)
        except UserError as error:
            return render("unreadable.html.jinja", live=UNREADABLE, name=self._run_dir.resolve().name, why=str(error))


def _digest(store: RunStore, record: RunRecord) -> str:
    """Of what a report shows that changes while a run goes on, besides how far its unfinished round is."""
    shown = [
        [(index, store.round(index).fingerprint()) for index in record.finished],
        len(record.results),
        sorted(record.initial),
        list(record.incidents),
        record.stopped,
        list(record.problems),
        record.config_yaml,
    ]
    return hashlib.sha256(json.dumps(shown).encode()).hexdigest()
