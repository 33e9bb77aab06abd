"""What `online-dpo status` shows of each round: fresh samples, the update, and where the time went."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from online_dpo.reports.data_set_lines import name_of_items, num_items, offline_outcomes
from online_dpo.reports.layout import number, titled
from online_dpo.reports.yields import losses
from online_dpo.types import REWARD

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
    "on-policy": "on_policy_share",
    "length": "length_mean",
    "answer\nlength": "answer_length_mean",
    "unclosed": "unclosed_rate",
    "chosen\nlength": "chosen_length_mean",
    "rejected\nlength": "rejected_length_mean",
    "demonstration\nlength": "demonstration_length_mean",
    "EOS": "eos_rate",
    "distinct-1": "distinct_1",
    "distinct-2": "distinct_2",
    "distinct-3": "distinct_3",
    "self-BLEU": "self_bleu",
    "duplicates": "duplicate_rate",
}


def rounds_table(status: dict[str, Any]) -> Table:
    """One row per round: yield, training figures, and each evaluation set's improvement with its price.

    Under a judge: the mean score of fresh samples; in brackets the paired-bootstrap 95 % interval of its gain over the
    initial policy.
    """
    table = titled("rounds, and fresh samples after each")
    sets = [record["set"] for record in status["initial"]]
    judges = [judge for record in status["initial"][:1] for judge in record["judges"]]
    kinds = {name_of_items(record) for record in status["rounds"]} or {"pairs"}
    items = kinds.pop() if len(kinds) == 1 else "items"
    for name in ("round", items, "no pair" if items == "pairs" else "dropped", "reward"):
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
            number(record.get(REWARD)),
            *_evaluation_cells(record["evaluation"], sets, judges, _IMPROVEMENT_PRICE),
        )
    return table


def price_table(status: dict[str, Any]) -> Table:
    """One row per round: what else its fresh samples show of the price."""
    table = titled("fresh samples, further figures")
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
    table = titled("wins of fresh samples against the initial policy's")
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


def training_table(status: dict[str, Any]) -> Table:
    """One row per round: means over its optimizer steps.

    Log-ratios are nats per completion. A chosen log-ratio below zero means that the chosen answers, too, became less
    likely than under the reference.
    """
    return _table(status, "optimizer steps, means", _TRAINING)


def samples_table(status: dict[str, Any]) -> Table:
    """One row per round: what it was trained on."""
    return _table(status, "samples trained on", _SAMPLES)


def _table(status: dict[str, Any], title: str, columns: dict[str, str]) -> Table:
    table = titled(title)
    known = {title: name for title, name in columns.items() if any(name in record for record in status["rounds"])}
    for title in ("round", *known):
        table.add_column(title, justify="right")
    for record in status["rounds"]:
        cells = (number(record.get(name)) for name in known.values())
        table.add_row(str(record["policy_version"]), *cells)
    return table


def seconds_table(status: dict[str, Any]) -> Table:
    """Seconds by stage of each round, of the process that finished it."""
    stages = list(dict.fromkeys(stage for record in status["rounds"] for stage in record["seconds"]))
    table = titled("seconds")
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
            cells.append(number(found.get("mean")) + gain)
        cells += [number(figures.get(key)) for key in further.values()]
    return cells
