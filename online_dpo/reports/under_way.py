"""Where a run stands by what its directory holds: its stage, the time left, and the figures that matter most."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from online_dpo.reports.live.headline import Headline, figure_cells
from online_dpo.reports.live.panel import duration, filled
from online_dpo.reports.live.timing import EVALUATING, NUM_ROUNDS
from online_dpo.store.round_store import RoundStore
from online_dpo.text_files import printable

NUM_WARNINGS = 3


def stage_of(part: RoundStore) -> str | None:
    """The stage that an unfinished round is in, by what is committed; None before its first commit."""
    names = set(part.names())
    if "adapter" in names or "learner/final" in names:
        return EVALUATING
    if names & {"pairs", "labelled", "demonstrations"}:
        return "learning"
    if "selected" in names:
        return "annotating"
    return "sampling" if "prompts" in names else None


def time_left(
    rounds: Sequence[Mapping[str, Any]], *, num_rounds: int, evaluated_every: int | None, since: float, now: float
) -> float | None:
    """Seconds that a run still takes if it goes on as in its last rounds; None where none is finished.

    Args:
        rounds: the summaries of the finished ones. Seconds are those of the process that finished a round.
        num_rounds: of the whole run.
        evaluated_every: rounds from one evaluation to the next; None = there is nothing to evaluate on.
        since: when the unfinished round began, seconds since 1970.
        now: the same of this moment.
    """
    if not rounds:
        return None
    newest = rounds[-NUM_ROUNDS:]
    plain = sum(sum(s for name, s in record["seconds"].items() if name != EVALUATING) for record in newest)
    evaluating = next((r["seconds"][EVALUATING] for r in reversed(rounds) if EVALUATING in r["seconds"]), 0.0)
    expected = [
        plain / len(newest) + evaluating * _is_evaluated(index, num_rounds, evaluated_every)
        for index in range(len(rounds), num_rounds)
    ]
    return sum(expected[1:]) + max(0.0, expected[0] - (now - since)) if expected else None


def _is_evaluated(index: int, num_rounds: int, every: int | None) -> bool:
    return every is not None and ((index + 1) % every == 0 or index + 1 == num_rounds)


def overview(status: Mapping[str, Any], *, width: int, ascii_only: bool = False) -> Iterator[str]:
    """The first lines of `online-dpo status`, which `--watch` shows again and again.

    Args:
        status: as `commands.status.read_status` gives it.
        width: of the terminal.
        ascii_only: draw with ASCII alone.
    """
    yield printable(f"{status['run_dir']}: {status['num_finished']} of {status['num_rounds']} rounds finished")
    if status["is_running"]:
        stage = "" if status["stage"] is None else f", {status['stage']}"
        left = "" if status["left_s"] is None else f", about {duration(status['left_s'])} left"
        yield f"round {status['num_finished'] + 1} is under way{stage}{left}"
    elif status["current"] is not None and status["stopped"] is None:
        yield f"nothing works on it; continue with: online-dpo resume {status['run_dir']}"
    headline = Headline()
    for record in (*status["initial"], *status["preferences"], *status["rounds"]):
        headline.add(record["kind"], record)
        for name, found in record.get("evaluation", {}).items():
            headline.add("evaluated", {"set": name, "policy_version": record["policy_version"], **found})
    yield from filled(figure_cells(headline, ascii_only=ascii_only), width)
    warnings = [f"round {r['policy_version']}: {warning}" for r in status["rounds"] for warning in r["warnings"]]
    for name, told in (("warning", warnings), ("incident", [i["what"] for i in status["incidents"]])):
        if told:
            more = f", the newest {NUM_WARNINGS}" if len(told) > NUM_WARNINGS else ""
            yield f"{len(told)} {name}{'s' if len(told) > 1 else ''}{more}:"
            yield from (f"  {printable(line)}" for line in told[-NUM_WARNINGS:])
