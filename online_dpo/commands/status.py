"""`online-dpo status`: what a run directory tells, also while the run goes on. Imports nothing heavy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from online_dpo.config.loading import load_config
from online_dpo.loop.control import Control, stop_reason
from online_dpo.reports.judge_tables import judges_table, latency_table, reasons_of
from online_dpo.reports.trackers import check_metrics
from online_dpo.reports.wording import num_items, offline_outcomes, show_preferences
from online_dpo.reports.yields import losses, read_yield, yield_table
from online_dpo.store.run_store import RunStore
from online_dpo.types import REWARD


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
        current, stopped = None, None
        if finished and len(finished) < config.run.rounds:
            stopped = stop_reason(config, Control.from_dict(store.round(finished[-1]).state()["control"]))
        if len(finished) < config.run.rounds:
            commits = store.round(len(finished)).names("")
            current = {
                "round": len(finished),
                "num_shards_sampled": sum(name.startswith("completions/") for name in commits),
                "num_shards_judged": sum(name.startswith("verdicts/") for name in commits),
                "has_pairs": "pairs" in commits or "labelled" in commits,
                "num_steps": sum(r["kind"] == "step" and r["round"] == len(finished) for r in records),
            }
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
        "current": current,
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
            console.print(yield_table(status["yield"], _titled("yield of prompts")))
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
    if status["stopped"] is not None:
        console.print(f"stopped: {status['stopped']}", soft_wrap=True)
    elif status["current"] is not None:
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
    table = _titled("rounds, and fresh samples after each")
    sets = [record["set"] for record in status["initial"]]
    judges = [judge for record in status["initial"][:1] for judge in record["judges"]]
    for name in ("round", "pairs", "no pair", "reward"):
        table.add_column(name, justify="right")
    for name in sets:
        for column in (*judges, *_IMPROVEMENT_PRICE):
            table.add_column(f"{name}\n{column}", justify="right", no_wrap=True)
    initial = {record["set"]: record for record in status["initial"]}
    if initial:
        table.add_row("start", "", "", "", *_evaluation_cells(initial, sets, judges, _IMPROVEMENT_PRICE))
    for record in status["rounds"]:
        rows = {f"row {name}": number for name, number in offline_outcomes(record).items() if name != "kept"}
        lost = {**losses(record.get("outcomes", {})), **{k: v for k, v in rows.items() if v}}
        table.add_row(
            str(record["policy_version"]),
            str(num_items(record)),
            ", ".join(f"{k} {v}" for k, v in lost.items()) or "0",
            _number(record.get(REWARD)),
            *_evaluation_cells(record["evaluation"], sets, judges, _IMPROVEMENT_PRICE),
        )
    return table


def price_table(status: dict[str, Any]) -> Table:
    """One row per round: what else its fresh samples show of the price."""
    table = _titled("fresh samples, further figures")
    sets = [record["set"] for record in status["initial"]]
    table.add_column("round", justify="right")
    for name in sets:
        for column in _FURTHER_PRICE:
            table.add_column(f"{name}\n{column}", justify="right", no_wrap=True)
    table.add_row("start", *_evaluation_cells({r["set"]: r for r in status["initial"]}, sets, [], _FURTHER_PRICE))
    for record in status["rounds"]:
        table.add_row(str(record["policy_version"]), *_evaluation_cells(record["evaluation"], sets, [], _FURTHER_PRICE))
    return table


def wins_table(status: dict[str, Any]) -> Table | None:
    """One row per evaluated round: how often its samples score higher than the initial policy's for the same prompts.

    In brackets the paired-bootstrap 95 % interval; equal scores are half a win. None where nothing was scored.
    """
    found = {
        (name, judge): None
        for record in status["rounds"]
        for name, evaluation in record["evaluation"].items()
        for judge, figures in evaluation["judges"].items()
        if figures["win_rate"] is not None
    }
    if not found:
        return None
    table = _titled("wins of fresh samples against the initial policy's")
    table.add_column("round", justify="right")
    for name, judge in found:
        table.add_column(f"{name}\n{judge}", justify="right", no_wrap=True)
    for record in status["rounds"]:
        cells = [_wins(record["evaluation"].get(name, {}), judge) for name, judge in found]
        if any(cells):
            table.add_row(str(record["policy_version"]), *cells)
    return table


def _wins(evaluation: dict[str, Any], judge: str) -> str:
    win_rate = evaluation.get("judges", {}).get(judge, {}).get("win_rate")
    return "" if win_rate is None else "{:.2f} [{:.2f}, {:.2f}]".format(*win_rate)


_IMPROVEMENT_PRICE = {"KL": "kl_initial", "length": "length_mean", "distinct-2": "distinct_2"}
_FURTHER_PRICE = {
    "KL to reference": "kl_reference",
    "entropy": "entropy",
    "EOS": "eos_rate",
    "distinct-1": "distinct_1",
    "distinct-3": "distinct_3",
    "self-BLEU": "self_bleu",
    "duplicates": "duplicate_rate",
}
_TRAINING = {
    "beta": "beta",
    "loss": "loss",
    "accuracy": "reward_accuracy",
    "margin": "reward_margin",
    "chosen\nlogps": "chosen_logps",
    "rejected\nlogps": "rejected_logps",
    "chosen\nlog-ratio": "chosen_log_ratio",
    "rejected\nlog-ratio": "rejected_log_ratio",
    "chosen\nat the end": "chosen_log_ratio_end",
    "rejected\nat the end": "rejected_log_ratio_end",
    "grad\nnorm": "grad_norm",
    "clipped": "clipped",
}
_SAMPLES = {
    "length": "length_mean",
    "chosen\nlength": "chosen_length_mean",
    "rejected\nlength": "rejected_length_mean",
    "EOS": "eos_rate",
    "distinct-1": "distinct_1",
    "distinct-2": "distinct_2",
    "distinct-3": "distinct_3",
    "self-BLEU": "self_bleu",
    "duplicates": "duplicate_rate",
}


def training_table(status: dict[str, Any]) -> Table:
    """One row per round: means over its optimizer steps. Gains are nats per completion against the reference; a chosen
    gain below zero means that the chosen answers became less likely, too."""
    return _table(status, "optimizer steps, means", _TRAINING)


def samples_table(status: dict[str, Any]) -> Table:
    """One row per round: what it was trained on."""
    return _table(status, "samples trained on", _SAMPLES)


def _titled(title: str) -> Table:
    return Table(box=None, padding=(0, 1), title=f"\n{title}", title_justify="left", title_style="bold")


def _table(status: dict[str, Any], title: str, columns: dict[str, str]) -> Table:
    table = _titled(title)
    known = {title: name for title, name in columns.items() if any(name in record for record in status["rounds"])}
    for title in ("round", *known):
        table.add_column(title, justify="right")
    for record in status["rounds"]:
        cells = (_number(record.get(name)) for name in known.values())
        table.add_row(str(record["policy_version"]), *cells)
    return table


def seconds_table(status: dict[str, Any]) -> Table:
    """Seconds by stage of each round, of the process that finished it."""
    stages = list(dict.fromkeys(stage for record in status["rounds"] for stage in record["seconds"]))
    table = _titled("seconds")
    for name in ("round", *stages, "seconds in all"):
        table.add_column(name, justify="right")
    for record in status["rounds"]:
        cells = [f"{record['seconds'].get(stage, 0.0):.1f}" for stage in stages]
        table.add_row(str(record["policy_version"]), *cells, f"{sum(record['seconds'].values()):.1f}")
    return table


def _evaluation_cells(
    evaluation: dict[str, Any], sets: list[str], judges: list[str], further: dict[str, str]
) -> list[str]:
    cells = []
    for name in sets:
        figures = evaluation.get(name, {})
        for judge in judges:
            found = figures.get("judges", {}).get(judge, {})
            gain = "" if found.get("gain") is None else " [{:+.2f}, {:+.2f}]".format(*found["gain"][1:])
            cells.append(_number(found.get("mean")) + gain)
        cells += [_number(figures.get(key)) for key in further.values()]
    return cells


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
