"""Where a run stands, as its events tell: what the display shows and nothing of how."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from online_dpo.loop.stages import INCIDENT, Event
from online_dpo.reports.listening import WARNING
from online_dpo.reports.live.headline import Headline
from online_dpo.reports.live.timing import Timing, Work
from online_dpo.text_files import printable
from online_dpo.types import REWARD

NUM_SHOWN = 3
"""Warnings and incidents that stay in sight; all are counted."""


@dataclass
class Sampled:
    """The newest sampling: what came of it until its last shard."""

    since: float
    until: float = 0.0
    num_completions: int = 0
    num_tokens: int = 0

    def per_second(self, number: int) -> float | None:
        return number / (self.until - self.since) if self.until > self.since else None


class Standing:
    """Changed by events alone; the clock is read when they come and when somebody looks."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Nothing has happened yet."""
        self.clock = clock
        self.began = clock()
        self.timing = Timing(clock)
        self.headline = Headline()
        self.round_index = 0
        self.stage = "starting"
        self.sampled: Sampled | None = None
        self.ahead: dict[str, Work] = {}  # of the next round, with `overlap: 1`
        self.newest: dict[str, str] = {}
        self.num_warnings = self.num_incidents = 0
        self.warnings: deque[str] = deque(maxlen=NUM_SHOWN)
        self.incidents: deque[str] = deque(maxlen=NUM_SHOWN)

    def note(self, line: str) -> None:
        """Take a sentence; the newest warnings are kept, and all are counted."""
        if line.startswith(WARNING):
            place = f"round {self.round_index + 1}: " if self.timing.num_rounds else ""
            self.num_warnings += 1
            self.warnings.append(printable(f"{place}{line.removeprefix(WARNING)}"))

    def hear(self, event: Event) -> None:
        """Take an event of any kind."""
        self.headline.add(event.kind, event.data)
        handler: Callable[[Event, Mapping[str, Any]], None] | None = getattr(self, f"_on_{event.kind}", None)
        if handler is not None:
            handler(event, event.data)

    def _on_run_started(self, event: Event, data: Mapping[str, Any]) -> None:
        self.timing.num_rounds, self.timing.evaluated_every = data["num_rounds"], data.get("evaluated_every")
        self.round_index = event.round_index

    def _on_round_started(self, event: Event, data: Mapping[str, Any]) -> None:
        self.round_index, self.stage, self.newest = event.round_index, "preparing", {}
        self.timing.begin_round(event.round_index)

    def _on_stage(self, event: Event, data: Mapping[str, Any]) -> None:
        self.stage = data["stage"]
        works = _works(data)
        was_ahead = bool(self.ahead) and self.stage == "sampling"  # by this process
        is_resumed = not was_ahead and data.get("num_to_sample", 0) < data.get("num_completions", 0)
        is_initial = data.get("policy_version") == 0
        self.timing.begin_stage(self.stage, works, is_resumed=is_resumed, is_initial=is_initial)
        if was_ahead and not works:  # the round ends by waiting for what is sampled ahead
            self.timing.works = self.ahead
        elif self.stage == "sampling":
            self.ahead = {}
        if "sampled" in works:
            self.sampled = Sampled(self.clock())

    def _on_sampling_ahead(self, event: Event, data: Mapping[str, Any]) -> None:
        self.ahead = {name: Work(total, self.clock()) for name, total in _works(data).items()}
        self.sampled = Sampled(self.clock())

    def _on_shard_sampled(self, event: Event, data: Mapping[str, Any]) -> None:
        self._count(event, "sampled", data["num_completions"])
        if self.sampled is not None:
            self.sampled.until = self.clock()
            self.sampled.num_completions += data["num_completions"]
            self.sampled.num_tokens += data["num_tokens"]

    def _on_shard_judged(self, event: Event, data: Mapping[str, Any]) -> None:
        self._count(event, "judged", len({verdict.prompt_id for verdict in data["verdicts"]}))
        scores = [verdict.score for verdict in data["verdicts"] if verdict.score is not None]
        if scores and data["judge"] == REWARD:
            self.newest["reward"] = f"{sum(scores) / len(scores):.3f}"

    def _on_people_asked(self, event: Event, data: Mapping[str, Any]) -> None:
        works, missing = self.timing.works, data["num_missing_votes"]
        if "votes" not in works or missing > works["votes"].total - works["votes"].done:
            works["votes"] = Work(missing, self.clock())  # now, or more are asked
        works["votes"].done = works["votes"].total - missing

    def _on_run_left(self, event: Event, data: Mapping[str, Any]) -> None:
        self.stage = "left to people"

    def _on_paired(self, event: Event, data: Mapping[str, Any]) -> None:
        self.newest["labels" if "labels" in data else "pairs"] = str(data["num_items"])

    def _on_step(self, event: Event, data: Mapping[str, Any]) -> None:
        works = self.timing.works
        if "steps" not in works:
            if data["step"]:
                self.timing.found_resumed()
            works["steps"] = Work(data["num_steps"] - data["step"], self.timing.stage_since)
        works["steps"].done += 1
        self.newest["step"] = f"{data['step'] + 1}/{data['num_steps']}"
        if not data.get("skipped"):
            self.newest["loss"] = f"{data['loss']:.4f}"

    def _on_round_committed(self, event: Event, data: Mapping[str, Any]) -> None:
        self.timing.end_round()
        self.stage = "preparing"

    def _on_run_done(self, event: Event, data: Mapping[str, Any]) -> None:
        self.stage = "done"

    def _on_run_stopped(self, event: Event, data: Mapping[str, Any]) -> None:
        self.stage = "stopped"

    def _on_incident(self, event: Event, data: Mapping[str, Any]) -> None:
        self.num_incidents += 1
        self.incidents.append(printable(f"round {event.round_index + 1}: {data['what']}"))

    def _count(self, event: Event, name: str, number: int) -> None:
        is_next = event.round_index > self.round_index
        work = (self.ahead if is_next else self.timing.works).get(name)
        if work is not None:
            work.done += number


assert INCIDENT == "incident"  # the handler's name


def _works(data: Mapping[str, Any]) -> dict[str, int]:
    names = {"sampled": "num_to_sample", "judged": "num_to_judge"}
    return {name: data[key] for name, key in names.items() if key in data}
