"""A run over fakes as a process of its own, with the display that the command line gives it.

    python shown_run.py FOLDER SECONDS [OPTION ...]

waits SECONDS at each event; options: `--json`, `--quiet`, `overlap`, `hostile` (texts that would break a terminal),
`torn` (others print, too), `fails` (with an exception in the second round), `asks` (whether money may be spent).
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from loop_kit import FakeStages
from loop_runs import Run

from judges.estimating import Use
from judges.llm.budget import Spend
from online_dpo.commands.preparing.spending import Expected
from online_dpo.commands.terminal.showing import Display, display
from online_dpo.commands.terminal.spending import ask_before_spending
from online_dpo.config.judges.llm import LlmJudge
from online_dpo.interruption import answer_signals
from online_dpo.loop.stages import Event
from online_dpo.reports.listening import Guarded, Listener

HOSTILE = "\x1b[2J\x1b[31m[red]bad[/red]\r\x07 \u202e \ud800 end"


class Slow(Listener):
    """Takes its time, and misbehaves as the options say."""

    def __init__(self, seconds: float, options: list[str], tell: Any) -> None:
        self.seconds, self.options, self.tell = seconds, options, tell

    def hear(self, event: Event) -> None:
        time.sleep(self.seconds)
        if event.kind == "round_started" and "hostile" in self.options:
            self.tell(f"warning: {HOSTILE}")
        if event.kind == "step" and "torn" in self.options:
            print(f"printed at step {event.data['step']}")
            print("complained at a step", file=sys.stderr)
        if event.kind == "step" and event.round_index and "fails" in self.options:
            raise SystemExit(7)


def ask(shown: Display) -> None:
    endpoint = {"base_url": "http://127.0.0.1:1/v1", "model": "m", "prices": {"prompt": 2.0, "completion": 10.0}}
    judge = LlmJudge.model_validate({"type": "llm", "endpoint": endpoint})
    use = Use(least=Spend(3, 1_000_000, 3), most=Spend(3, 2_000_000, 100))
    approve = ask_before_spending(shown.paused)
    assert approve is not None
    approve([Expected(field="judge", section=judge, use=use, spent=Spend())])


def main(folder: str, seconds: str, *options: str) -> None:
    answer_signals()
    run = Run.of(Path(folder), overlap=int("overlap" in options))
    with display(quiet="--quiet" in options, as_json="--json" in options) as shown:
        guard = Guarded([shown.begin(run.path)])
        if "asks" in options:
            ask(shown)
        try:
            run.go_on(FakeStages(run.config), listeners=[guard, Slow(float(seconds), list(options), guard.note)])
        except KeyboardInterrupt:
            shown.end()
            print("interrupted", file=sys.stderr)
            raise SystemExit(130) from None
        shown.end()
        print(f"run directory: {run.path}")


if __name__ == "__main__":
    main(*sys.argv[1:])
