"""What happened to the actors of a run: told at once, a line of the metrics each, and Ray's own words in a log."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Protocol

from online_dpo.loop.stages import INCIDENT, Event
from online_dpo.reports.listening import Listener
from online_dpo.store.files import explained
from online_dpo.store.run_store import RunStore

ACTORS_LOG = "actors.log"
"""In the run directory: what Ray said about actors that were lost."""


class Incident(Protocol):
    """As `actors.failures.Incident`."""

    actor: str
    detail: str

    @property
    def sentence(self) -> str: ...


class Incidents(Listener):
    """Those of one process."""

    def __init__(self, store: RunStore, listeners: Sequence[Listener]) -> None:
        """Nothing has happened yet.

        Args:
            store: of the run.
            listeners: are told.
        """
        self._store, self._listeners = store, listeners
        self._round = 0
        self._lines: list[str] = []

    def hear(self, event: Event) -> None:
        if event.kind in ("run_started", "round_started"):  # others may be about the next round
            self._round = event.round_index

    def add(self, incident: Incident) -> None:
        """Tell and write down what happened to an actor."""
        line = f"round {self._round + 1}: {incident.sentence}"
        happened = {"actor": incident.actor, "what": incident.sentence}
        for listener in self._listeners:
            listener.note(line)
            listener.hear(Event(kind=INCIDENT, round_index=self._round, data=happened))
        self._lines.append(f"{time.strftime('%H:%M:%S')} {line}")
        self._store.append_metrics({"kind": INCIDENT, "round": self._round, "time": time.time(), **happened})
        path = self._store.path
        with explained(path, ACTORS_LOG), (path / ACTORS_LOG).open("a", encoding="utf-8") as log:
            log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n{incident.detail}\n\n")

    def summary(self) -> str:
        """What happened, and how to go on."""
        happened = ["what happened before:", *(f"  {line}" for line in self._lines)] if self._lines else []
        log = f"Ray's own words are in {self._store.path / ACTORS_LOG}" if self._lines else ""
        go_on = f"nothing that was committed is lost; continue with: online-dpo resume {self._store.path}"
        return "\n".join([*happened, *filter(None, [log]), go_on])
