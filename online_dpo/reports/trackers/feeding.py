"""Hears a run and sends each tracker what it has not got yet, once: also after a resume, a lost learner or a rewind."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from online_dpo.config.judges.view import ViewSection
from online_dpo.loop.stages import Event
from online_dpo.reports.listening import WARNING, Listener
from online_dpo.reports.result_reading import read_initial, read_rounds
from online_dpo.reports.results import EvaluationResult, RoundResult
from online_dpo.reports.trackers.figures import evaluation_figures, round_figures, step_figures
from online_dpo.reports.trackers.samples import sample_tables
from online_dpo.reports.trackers.tracker import SampleTable, TrackedRun, Tracker
from online_dpo.reports.trackers.worker import Call, Journal, Worker
from online_dpo.store.run_store import RunStore
from online_dpo.types import Prompt

log = logging.getLogger(__name__)


@dataclass
class _Fed:
    """A tracker with what it is sent; the journal is ahead of what the thread has done by what waits."""

    worker: Worker
    journal: Journal
    path: Path
    waiting: list[tuple[str, Call]] = field(default_factory=list)  # until the thread begins

    def send(self, call: Callable[[Tracker], None], *, method: str = "log", **news: Any) -> None:
        """Have a call made, and before it written down that it is: a kill between the two must not send it twice."""
        num_calls = self.journal.num_calls + (method != "start")
        self.journal = after = replace(self.journal, num_calls=num_calls, **news)

        def noted(tracker: Tracker) -> None:
            after.write(self.path)
            call(tracker)

        if self.worker.is_begun:
            self.worker.put(method, noted)
        else:
            self.waiting.append((method, noted))


class Trackers(Listener):
    """All trackers of a process. A context manager: at the end it waits for them, but not for ever."""

    def __init__(
        self,
        trackers: Mapping[str, Tracker],
        config: Mapping[str, Any],
        store: RunStore,
        sets: Mapping[str, Sequence[Prompt]],
        tell: Callable[[str], None],
        view: ViewSection | None = None,
    ) -> None:
        """Nothing is sent before the run starts.

        Args:
            trackers: by name.
            config: of the run, resolved.
            store: of the run.
            sets: evaluation set -> its prompts.
            tell: takes a line for people.
            view: what of a completion is the answer.
        """
        self._view = view
        self._trackers, self._config, self._store, self._sets, self._tell = trackers, config, store, sets, tell
        self._fed: list[_Fed] = []
        self._num_steps = 0  # of the whole run
        self._ended = "failed"
        self._newest: dict[str, float] = {}

    def __enter__(self) -> Trackers:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            self._ended = "interrupted"
        num_rounds = len(self._store.finished_rounds())
        summary = {"ended": self._ended, "num_rounds": num_rounds, **self._newest}
        for fed in self._fed:
            self._warn(fed.worker.close(lambda tracker: tracker.finish(summary)))

    def hear(self, event: Event) -> None:
        if self._trackers:
            self._safely(self._hear, event)

    def round_done(self, result: RoundResult) -> None:
        if self._trackers:
            self._safely(self._send_round, result)

    def _safely(self, method: Callable[[Any], None], said: Any) -> None:
        try:
            method(said)
        except Exception as error:
            log.warning("trackers failed", exc_info=error)
            self._trackers = {}
            self._warn([f"trackers failed, and the run goes on without them: {type(error).__name__}: {error}"])

    def _hear(self, event: Event) -> None:
        if event.kind == "run_started":
            self._catch_up()
        elif event.kind == "step":
            self._send_step(self._num_steps, event.data)
            self._num_steps += 1
        elif event.kind == "evaluated" and event.data["policy_version"] == 0:
            self._send_initial(read_initial([{"kind": event.kind, **event.data}]))
        elif event.kind in ("run_done", "run_stopped", "run_left"):
            self._ended = event.kind.removeprefix("run_")
        for fed in self._fed:
            self._warn(fed.worker.problems())

    def _catch_up(self) -> None:
        """Begin, or where the learner was lost begin again; send what an earlier process did not."""
        records = self._store.metrics()
        rounds = [r for r in read_rounds(records) if r.round in self._store.finished_rounds()]
        is_first = not self._fed
        if is_first:
            self._fed = [self._make(name, tracker, rounds) for name, tracker in self._trackers.items()]
        steps = [record for record in records if record["kind"] == "step"]
        self._num_steps = len(steps)
        self._send_initial(read_initial(records))
        for position, record in enumerate(steps):
            self._send_step(position, record)
        for result in rounds:
            self._send_round(result)
        if is_first:
            for fed in self._fed:
                fed.worker.begin(fed.waiting)

    def _make(self, name: str, tracker: Tracker, rounds: Sequence[RoundResult]) -> _Fed:
        path = self._store.path / "trackers" / f"{name}.json"
        journal = Journal.read(path)
        sent = [r for r in rounds if r.policy_version == journal.num_rounds and r.time == journal.round_time]
        if journal.num_rounds and not sent:  # the round that was sent last was set aside
            journal = Journal.new(self._store.path.name, journal.number + 1)
        fed = _Fed(Worker(name, tracker), journal, path)
        run = TrackedRun(
            name=journal.name,
            number=journal.number,
            id=journal.id,
            num_sent=journal.num_calls,
            run_dir=self._store.path,
            config=self._config,
        )
        fed.send(lambda tracker: tracker.start(run), method="start")
        return fed

    def _send_step(self, position: int, data: Mapping[str, Any]) -> None:
        for fed in self._fed:
            if position >= fed.journal.num_steps:
                fed.send(_log(step_figures(data), "step", position), num_steps=position + 1)

    def _send_initial(self, found: Mapping[str, EvaluationResult]) -> None:
        for name, result in found.items():
            wanting = [fed for fed in self._fed if name not in fed.journal.initial]
            if not wanting:
                continue
            figures = evaluation_figures(name, result)
            tables = self._tables({name: self._sets.get(name, ())}, 0)
            for fed in wanting:
                fed.send(_log(figures, "round", 0), initial=(*fed.journal.initial, name))
                _send_tables(fed, tables, 0)

    def _send_round(self, result: RoundResult) -> None:
        number = result.policy_version
        self._newest = figures = round_figures(result)
        wanting = [fed for fed in self._fed if number > fed.journal.num_rounds]
        if not wanting:
            return
        tables = self._tables(self._sets, number)
        for fed in wanting:
            fed.send(_log(figures, "round", number), num_rounds=number, round_time=result.time)
            _send_tables(fed, tables, number)

    def _tables(self, sets: Mapping[str, Sequence[Prompt]], version: int) -> list[SampleTable]:
        try:
            return sample_tables(self._store, sets, version, self._view)
        except Exception as error:
            log.warning("no table of answers could be made", exc_info=error)
            self._warn([f"trackers get no answers of policy {version}: {error}"])
            return []

    def _warn(self, problems: Sequence[str]) -> None:
        for problem in problems:
            self._tell(f"{WARNING}{problem}")


def _log(figures: Mapping[str, float], axis: Any, position: int) -> Call:
    return lambda tracker: tracker.log(figures, axis, position)


def _send_tables(fed: _Fed, tables: Sequence[SampleTable], number: int) -> None:
    for table in tables:
        fed.send(_table(table, number), method="table")


def _table(table: SampleTable, number: int) -> Call:
    return lambda tracker: tracker.table(table, number)
