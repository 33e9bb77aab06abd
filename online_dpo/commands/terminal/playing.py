"""How the command line plays a run: the display, the last line, what to do next, and the exit code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import typer

from online_dpo.commands.terminal.showing import display
from online_dpo.commands.terminal.spending import ask_before_spending
from online_dpo.config.run import RunConfig
from online_dpo.reports.run_result import RunResult
from online_dpo.store.run_store import RunStore

STOPPED = 3
"""The exit code of a run that its own drift budget or alarm ended."""
AWAITS_PEOPLE = 4
"""The exit code of a run that asked people, does not wait for them, and goes on once they have answered."""


def play(
    launch: Callable[..., RunResult], load: Callable[[], RunConfig], *, quiet: bool, as_json: bool, yes: bool
) -> None:
    """Play a run under the display that is asked for.

    Args:
        launch: starts or continues the run of a config.
        load: reads the config.
        quiet: warnings and the last line only.
        as_json: one JSON object a line.
        yes: spend money without a question.

    Raises:
        typer.Exit: the run ended before its last round, though nothing went wrong.
    """
    with display(quiet=quiet, as_json=as_json) as shown:
        config = load()
        try:
            approve = None if yes or as_json else ask_before_spending(shown.paused)
            result = launch(config, listeners=(shown.begin(config.run_dir),), approve=approve)
        except KeyboardInterrupt:
            shown.end()
            typer.echo(f"\ninterrupted; {_way_on(config.run_dir)}", err=True)
            raise
        shown.end()
        typer.echo(f"run directory: {result.run_dir}")
        if result.stopped is not None:
            go_on = f"continue with: online-dpo resume {result.run_dir} KEY=VALUE"
            typer.echo(f"stopped: {result.stopped}\n{go_on}", err=True)
            raise typer.Exit(STOPPED)
        if (awaited := result.awaited) is not None:
            typer.echo(
                f"people are asked {awaited.num_questions} questions, and {awaited.num_missing_votes} votes are "
                f"missing\nopen them with: online-dpo annotate {result.run_dir}\n"
                f"continue with: online-dpo resume {result.run_dir}",
                err=True,
            )
            raise typer.Exit(AWAITS_PEOPLE)


def _way_on(run_dir: Path) -> str:
    """How a run goes on that ended before its end."""
    if not RunStore.exists(run_dir):
        return "nothing was done yet: start it again with the same command"
    return f"what was committed is kept. Continue with: online-dpo resume {run_dir}"
