"""`online-dpo status`: what a run directory tells, also while the run goes on. Imports nothing heavy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from online_dpo.config_loading import load_config
from online_dpo.metrics import check_metrics
from online_dpo.pair_words import num_items, offline_outcomes, show_preferences
from online_dpo.stages import REWARD
from online_dpo.store import RunStore


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
        current = None
        if len(finished) < config.run.rounds:
            commits = store.round(len(finished)).names("")
            current = {
                "round": len(finished),
                "num_shards_sampled": sum(name.startswith("completions/") for name in commits),
                "num_shards_judged": sum(name.startswith("verdicts/") for name in commits),
                "has_pairs": "pairs" in commits or "labelled" in commits,
                "num_steps": sum(r["kind"] == "step" and r["round"] == len(finished) for r in records),
            }
    return {
        "run_dir": str(run_dir),
        "num_rounds": config.run.rounds,
        "num_finished": len(finished),
        "preferences": [r for r in records if r["kind"] == "evaluated_pairs"],
        "initial": [r for r in records if r["kind"] == "evaluated" and r["policy_version"] == 0],
        # A round whose summary is written but not committed would be done again.
        "rounds": [r for r in records if r["kind"] == "round_done" and r["round"] in finished],
        "current": current,
    }


def show_status(status: dict[str, Any], console: Console, *, as_json: bool) -> None:
    """Print a status for people, or as JSON."""
    if as_json:
        console.print_json(json.dumps(status))
        return
    console.print(f"{status['run_dir']}: {status['num_finished']} of {status['num_rounds']} rounds finished")
    if status["rounds"] or status["initial"]:
        console.print(rounds_table(status))
        console.print(seconds_table(status))
    for record in status["preferences"]:
        console.print(f"policy {record['policy_version']} on {record['set']}: {show_preferences(record)}")
    if status["current"] is not None:
        now = status["current"]
        console.print(
            f"round {now['round'] + 1} is unfinished: {now['num_shards_sampled']} shards sampled, "
            f"{now['num_shards_judged']} judged, {'paired' if now['has_pairs'] else 'not paired'}, "
            f"{now['num_steps']} steps taken"
        )


def rounds_table(status: dict[str, Any]) -> Table:
    """One row per round: yield, training figures, and each evaluation set's improvement with its price.

    Under a judge: the mean score of fresh samples; in brackets the paired-bootstrap 95 % interval of its gain over the
    initial policy.
    """
    table = Table(box=None, padding=(0, 1))
    sets = [record["set"] for record in status["initial"]]
    judges = [name.removesuffix("_num_abstained") for r in status["initial"][:1] for name in r if "_abstained" in name]
    for name in ("round", "pairs", "no pair", "reward", "loss"):
        table.add_column(name, justify="right")
    for name in sets:
        for column in (*judges, "KL", "length", "distinct-2"):
            table.add_column(f"{name}\n{column}", justify="right", no_wrap=True)
    initial = {record["set"]: record for record in status["initial"]}
    if initial:
        table.add_row("start", "", "", "", "", *_evaluation_cells(initial, sets, judges))
    for record in status["rounds"]:
        rows = {f"row {name}": number for name, number in offline_outcomes(record).items() if name != "kept"}
        lost = {k: v for k, v in {**record.get("outcomes", {}), **rows}.items() if v and k != "paired"}
        table.add_row(
            str(record["policy_version"]),
            str(num_items(record)),
            ", ".join(f"{k} {v}" for k, v in lost.items()) or "0",
            _number(record.get(REWARD)),
            _number(record.get("loss")),
            *_evaluation_cells(record["evaluation"], sets, judges),
        )
    return table


def seconds_table(status: dict[str, Any]) -> Table:
    """Seconds by stage of each round, of the process that finished it."""
    stages = list(dict.fromkeys(stage for record in status["rounds"] for stage in record["seconds"]))
    table = Table(box=None, padding=(0, 1))
    for name in ("round", *stages, "seconds in all"):
        table.add_column(name, justify="right")
    for record in status["rounds"]:
        cells = [f"{record['seconds'].get(stage, 0.0):.1f}" for stage in stages]
        table.add_row(str(record["policy_version"]), *cells, f"{sum(record['seconds'].values()):.1f}")
    return table


def _evaluation_cells(evaluation: dict[str, Any], sets: list[str], judges: list[str]) -> list[str]:
    cells = []
    for name in sets:
        figures = evaluation.get(name, {})
        for judge in judges:
            gain = ""
            if f"{judge}_gain" in figures:
                gain = f" [{figures[f'{judge}_gain_low']:+.2f}, {figures[f'{judge}_gain_high']:+.2f}]"
            cells.append(_number(figures.get(judge)) + gain)
        cells += [_number(figures.get(key)) for key in ("kl_initial", "length_mean", "distinct_2")]
    return cells


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
