"""`online-dpo status`: what a run directory tells, also while the run goes on. Imports nothing heavy."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from online_dpo.config.loading import load_config
from online_dpo.loop.positions import why_stopped
from online_dpo.loop.stages import INCIDENT
from online_dpo.reports.data_set_lines import show_preferences
from online_dpo.reports.judge_tables import judges_table, latency_table, reasons_of
from online_dpo.reports.metrics import check_metrics
from online_dpo.reports.round_tables import (
    price_table,
    rounds_table,
    samples_table,
    seconds_table,
    training_table,
    wins_table,
)
from online_dpo.reports.yields import read_yield, yield_table
from online_dpo.store.round_store import RoundStore
from online_dpo.store.run_store import RunStore


def read_status(run_dir: Path) -> dict[str, Any]:
    """Rounds, rewards, KL, drop counts and stage times as one JSON value.

    Raises:
        RunDirectoryError: there is no run, or its settings or metrics are damaged.
    """
    import yaml

    with RunStore.read(run_dir) as store:
        config = load_config(yaml.safe_load(store.config_yaml))
        check_metrics(store)
        finished = store.finished_rounds()
        records = store.metrics()
        is_complete = len(finished) >= config.run.rounds
        stopped = None if is_complete else why_stopped(config, store)
        first, second = store.unfinished_rounds()
        # A run whose run.rounds was lowered may have a round that was sampled ahead and is not played.
        current = None if is_complete and not first.names() else _progress(first, records)
        ahead = _progress(second, records) if second.names() else None
    # A round whose summary is written but not committed would be done again.
    rounds = [r for r in records if r["kind"] == "round_done" and r["round"] in finished]
    return {
        "run_dir": str(run_dir),
        "num_rounds": config.run.rounds,
        "num_finished": len(finished),
        "preferences": [r for r in records if r["kind"] == "evaluated_pairs"],
        "initial": [r for r in records if r["kind"] == "evaluated" and r["policy_version"] == 0],
        "rounds": rounds,
        "yield": [found for record in rounds if (found := read_yield(record)) is not None],
        "incidents": [r for r in records if r["kind"] == INCIDENT],
        "current": current,
        "ahead": ahead,
        "stopped": stopped,
    }


def show_status(status: dict[str, Any], console: Console, *, as_json: bool) -> None:
    """Print a status for people, or as JSON."""
    if as_json:
        console.print_json(json.dumps(status))
        return
    console.print(f"{status['run_dir']}: {status['num_finished']} of {status['num_rounds']} rounds finished")
    if status["rounds"] or status["initial"]:
        console.print(rounds_table(status))
        if status["initial"]:
            console.print(price_table(status))
            if (wins := wins_table(status)) is not None:
                console.print(wins)
        if status["yield"]:
            console.print(yield_table(status["yield"]))
        console.print(training_table(status))
        console.print(samples_table(status))
        for table in (judges_table(status["rounds"]), latency_table(status["rounds"])):
            if table is not None:
                console.print(table)
        console.print(seconds_table(status))
    for record in status["preferences"]:
        shown = show_preferences(record)
        console.print(f"policy {record['policy_version']} on {record['set']}: {shown}", highlight=False, soft_wrap=True)
    for record in status["rounds"]:
        for line in reasons_of(record):
            console.print(line, highlight=False, soft_wrap=True)
        for warning in record["warnings"]:
            console.print(f"warning: {warning}", soft_wrap=True)
    for record in status["incidents"]:
        console.print(f"round {record['round'] + 1}: {record['what']}", highlight=False, soft_wrap=True)
    if status["stopped"] is not None:
        console.print(f"stopped: {status['stopped']}", soft_wrap=True)
    elif status["current"] is not None:
        now = status["current"]
        console.print(
            f"round {now['round'] + 1} is unfinished: {now['num_shards_sampled']} shards sampled, "
            f"{now['num_shards_judged']} judged, {'paired' if now['has_pairs'] else 'not paired'}, "
            f"{now['num_steps']} steps taken"
        )
        if (ahead := status["ahead"]) is not None:
            console.print(
                f"round {ahead['round'] + 1} is sampled ahead: {ahead['num_shards_sampled']} shards sampled, "
                f"{ahead['num_shards_judged']} judged"
            )


def _progress(part: RoundStore, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What is done of a round that is not finished."""
    commits = part.names()
    return {
        "round": part.index,
        "num_shards_sampled": sum(name.startswith("completions/") for name in commits),
        "num_shards_judged": sum(name.startswith("verdicts/") for name in commits),
        "has_pairs": bool({"pairs", "labelled", "demonstrations"} & set(commits)),
        "num_steps": sum(r["kind"] == "step" and r["round"] == part.index for r in records),
    }
