"""`online-dpo status`: what a run directory tells, also while the run goes on. Imports nothing heavy."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from online_dpo.config.loading import load_config
from online_dpo.errors import UserError
from online_dpo.loop.people.leaving import awaited
from online_dpo.loop.positions import why_stopped
from online_dpo.loop.stages import INCIDENT
from online_dpo.reports.data_set_lines import show_preferences
from online_dpo.reports.domains.tables import domain_tables
from online_dpo.reports.judge_tables import judges_table, latency_table, reasons_of
from online_dpo.reports.metrics import check_metrics
from online_dpo.reports.people import annotators_table, people_lines, read_people
from online_dpo.reports.round_tables import (
    price_table,
    rounds_table,
    samples_table,
    seconds_table,
    training_table,
    wins_table,
)
from online_dpo.reports.under_way import overview, stage_of, time_left
from online_dpo.reports.yields import read_yield, yield_table
from online_dpo.store.files import is_in_use
from online_dpo.store.forking import FORKS, describe_forks
from online_dpo.store.round_store import RoundStore
from online_dpo.store.run_format import INITIAL_POLICY, SFT
from online_dpo.store.run_store import RunStore
from online_dpo.text_files import printable

WATCH_S = 2.0
"""Seconds from one look to the next."""


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
        waits = awaited(store) is not None
        current = None if is_complete and not first.names() else _progress(first, records)
        ahead = _progress(second, records) if second.names() else None
        stage, forks = stage_of(first), store.info.get(FORKS)
        before = None if config.sft is None else _sft(run_dir, config.sft.rounds)
        if before is not None and not store.round(0).has(INITIAL_POLICY):
            number = min(before["num_finished"] + 1, before["num_rounds"])
            stage = f"supervised fine-tuning before it, round {number} of {before['num_rounds']}"
    is_running = not is_complete and stopped is None and is_in_use(run_dir)
    # A round whose summary is written but not committed would be done again.
    rounds = [r for r in records if r["kind"] == "round_done" and r["round"] in finished]
    left = None
    if is_running:
        evaluation, now = config.evaluation, time.time()
        left = time_left(
            rounds,
            num_rounds=config.run.rounds,
            evaluated_every=evaluation.every if evaluation.sets or evaluation.pairs else None,
            since=rounds[-1].get("time", now) if rounds else now,
            now=now,
        )
    return {
        "run_dir": str(run_dir),
        **({FORKS: forks} if forks else {}),
        **({SFT: before} if before is not None else {}),
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
        "is_running": is_running,
        "stage": stage,
        "left_s": left,
        "people": None if (found := read_people(run_dir)) is None else {**found, "awaited": waits},
    }


def show_status(status: dict[str, Any], console: Console, *, as_json: bool) -> None:
    """Print a status for people, or as JSON."""
    if as_json:
        console.print_json(json.dumps(status))
        return

    def say(line: str) -> None:
        console.print(Text(printable(line)), soft_wrap=True)

    for line in overview(status, width=console.width, ascii_only=console.options.ascii_only):
        console.print(Text(line), soft_wrap=True)
    for line in describe_forks(status):
        say(line)
    if SFT in status and status[SFT]["rounds"]:
        say(_describe_sft(status))
    if status["rounds"] or status["initial"]:
        console.print(rounds_table(status))
        if status["initial"]:
            console.print(price_table(status))
            if (wins := wins_table(status)) is not None:
                console.print(wins)
        if status["yield"]:
            console.print(yield_table(status["yield"]))
    if status["rounds"]:  # the initial policy alone has no rows in these
        console.print(training_table(status))
        console.print(samples_table(status))
        for by_domain in domain_tables(status["rounds"]):
            console.print(by_domain)
        for table in (judges_table(status["rounds"]), latency_table(status["rounds"])):
            if table is not None:
                console.print(table)
        console.print(seconds_table(status))
    for record in status["preferences"]:
        shown = show_preferences(record)
        say(f"policy {record['policy_version']} on {record['set']}: {shown}")
    for record in status["rounds"]:
        for line in reasons_of(record):
            say(line)
        for warning in record["warnings"]:
            say(f"warning: {warning}")
    for record in status["incidents"]:
        say(f"round {record['round'] + 1}: {record['what']}")
    if (people := status["people"]) is not None:
        if (table := annotators_table(people.get("annotators", ()))) is not None:
            console.print(table)
        for line in people_lines(people, status["run_dir"]):
            say(line)
    if status["stopped"] is not None:
        say(f"stopped: {status['stopped']}")
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


def _sft(run_dir: Path, num_rounds: int) -> dict[str, Any]:
    """Where the fine-tuning before the first round stands."""
    if not RunStore.exists(run_dir / SFT):
        return {"num_rounds": num_rounds, "num_finished": 0, "rounds": []}
    found = read_status(run_dir / SFT)
    return {name: found[name] for name in ("num_rounds", "num_finished", "rounds", "preferences")}


def _describe_sft(status: Mapping[str, Any]) -> str:
    found = status[SFT]
    losses = ", ".join(f"{record['loss']:.4f}" for record in found["rounds"] if record.get("loss") is not None)
    return (
        f"supervised fine-tuning before: {found['num_finished']} of {found['num_rounds']} rounds finished, loss "
        f"{losses or 'none'} nats per token; more: online-dpo status {status['run_dir']}/{SFT}"
    )


def watch_status(run_dir: Path) -> None:
    """Show where a run stands, again and again, until it ends or nothing works on it.

    Raises:
        UserError: there is no terminal.
        RunDirectoryError: as `read_status`.
    """
    console = Console()
    if not (sys.stdout.isatty() and console.is_interactive):
        raise UserError("--watch needs a terminal; without it, `online-dpo status` prints where the run stands now")
    status = read_status(run_dir)
    with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
        while True:
            lines = overview(status, width=console.width, ascii_only=console.options.ascii_only)
            live.update(Group(*(Text(line, no_wrap=True, overflow="ellipsis") for line in lines)), refresh=True)
            if not status["is_running"]:
                return
            time.sleep(WATCH_S)
            status = read_status(run_dir)


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
