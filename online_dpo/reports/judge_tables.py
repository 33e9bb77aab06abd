"""What `online-dpo status` shows of the judges. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table

from online_dpo.reports.layout import percent, titled
from online_dpo.statistics.judge_warnings import is_inconsistent, is_large

COLUMNS = (
    "round",
    "judge",
    "verdicts",
    "abstains",
    "covered",
    "orders\nagree",
    "repeats\nagree",
    "first\nwins",
    "longer\nwins",
    "members\nalpha",
    "calls",
    "tokens",
)
LATENCY_COLUMNS = ("round", "judge", "calls", "mean", "median", "95 %", "most")


def judges_table(rounds: list[dict[str, Any]]) -> Table | None:
    """One row for each judge of each round; None where no round has judges.

    A share that deserves a warning has an exclamation mark; what does not apply to a judge is empty.
    """
    rows = [row for record in rounds for row in judge_rows(record)]
    if not rows:
        return None
    table = titled("judges")
    used = judge_columns(rounds)
    for i in used:
        table.add_column(COLUMNS[i], justify="left" if i == 1 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(row[i] for i in used))
    return table


def judge_columns(rounds: Sequence[Mapping[str, Any]]) -> list[int]:
    """Those of `COLUMNS` that have something in any of the rounds."""
    rows = [row for record in rounds for row in judge_rows(record)]
    return [i for i in range(len(COLUMNS)) if i < 2 or any(row[i] for row in rows)]


def latency_table(rounds: list[dict[str, Any]]) -> Table | None:
    """Milliseconds of the judges' calls in each round, of the process that finished it; None without any."""
    rows = [row for record in rounds for row in latency_rows(record)]
    if not rows:
        return None
    table = titled("ms of a judge's call")
    for name in LATENCY_COLUMNS:
        table.add_column(name, justify="left" if name == "judge" else "right")
    for row in rows:
        table.add_row(*row)
    return table


def latency_rows(record: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """A row of `LATENCY_COLUMNS` for each judge of a round."""
    for label, seconds in record.get("latency_s", {}).items():
        shown = (f"{1e3 * seconds[name]:.1f}" for name in ("mean", "median", "p95", "max"))
        yield (str(record["policy_version"]), label, str(int(seconds["num_calls"])), *shown)


def reasons_of(record: Mapping[str, Any]) -> Iterator[str]:
    """A line for each judge of a round that abstained: on how many verdicts, and why."""
    for judge, figures in _judges(record):
        if figures["num_abstained"]:
            reasons = ", ".join(f"{number} x {reason}" for reason, number in figures["reasons"].items())
            yield f"round {record['policy_version']}, {judge} abstained: {reasons}"


def judge_rows(record: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """A row of `COLUMNS` for each judge of a round."""
    for judge, figures in _judges(record):
        counters = figures["counters"]
        alphas = [
            f"{alpha:.2f}"
            for found in figures.get("ensembles", {}).values()
            if (alpha := found.get("alpha", found.get("alpha_scores"))) is not None
        ]
        if (people := figures.get("people")) is not None and people["alpha"] is not None:
            alphas.append(f"{people['alpha']:.2f}")
        tokens = sum(counters.get(f"num_judge_{kind}_tokens", 0) for kind in ("prompt", "completion"))
        covered = f"{figures['num_covered']} of {figures['num_prompts']}" if "num_covered" in figures else ""
        yield (
            str(record["policy_version"]),
            judge,
            str(figures["num_verdicts"]),
            percent(figures["abstention_rate"]),
            covered,
            *(_consistency(figures, *names) for names in CONSISTENCIES),
            percent(figures.get("first_wins")) + ("!" if is_large(figures, "first_wins") else ""),
            percent(figures.get("longer_wins")) + ("!" if is_large(figures, "longer_wins") else ""),
            ", ".join(alphas),
            str(counters.get("num_judge_requests", counters.get("num_judge_calls", ""))),
            str(tokens or ""),
        )


CONSISTENCIES = ("order_consistency", "num_asked_both_ways"), ("repeat_agreement", "num_repeated")


def _consistency(figures: Mapping[str, Any], name: str, number: str) -> str:
    share = figures.get(name)
    return percent(share) + ("!" if is_inconsistent(share, figures.get(number, 0)) else "")


def _judges(record: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The training judge, then those of each evaluation set."""
    yield from record.get("judges", {}).items()
    for name, evaluation in record["evaluation"].items():
        for judge, figures in evaluation.get("judges", {}).items():
            yield f"{judge} on {name}", figures["report"]
