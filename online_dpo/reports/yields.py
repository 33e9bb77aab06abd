"""What became of a round's prompts, for people: how many gave something to train on, and why the others did not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from online_dpo.reports.layout import titled

GAVE = ("paired", "labelled")
"""The outcomes of prompts that gave pairs, or labelled answers."""


def losses(outcomes: Mapping[str, int]) -> dict[str, int]:
    """Why prompts gave nothing -> how many."""
    return {name: number for name, number in outcomes.items() if number and name not in GAVE}


def read_yield(record: Mapping[str, Any]) -> dict[str, Any] | None:
    """Of a round's summary; None where the round sampled nothing.

    Returns:
        `prompts`, how many of them `gave` something, their `share`, `lost` (why the others gave nothing -> prompts);
        of answers labelled by their scores also `labels` (what became of each -> completions), and where there is an
        annotator how many pairs it `overturned`.
    """
    if "outcomes" not in record:
        return None
    outcomes = record["outcomes"]
    gave = sum(outcomes.get(name, 0) for name in GAVE)
    found = {
        "policy_version": record["policy_version"],
        "prompts": record["num_prompts"],
        "gave": gave,
        "share": gave / record["num_prompts"],
        "lost": losses(outcomes),
    }
    if "annotator" in record:
        found["overturned"] = record["annotator"]["num_overturned"]
    return {**found, "labels": record["labels"]} if "labels" in record else found


def yield_table(yields: Sequence[Mapping[str, Any]]) -> Table:
    """One row per round: the share of prompts that gave something, and a column for each reason why others did not."""
    table = titled("yield of prompts")
    reasons = list(dict.fromkeys(reason for found in yields for reason in found["lost"]))
    labels = list(
        dict.fromkeys(label for found in yields for label, number in found.get("labels", {}).items() if number)
    )
    annotator = ["overturned"] if any("overturned" in found for found in yields) else []
    columns = ("round", "prompts", "used", "share", *annotator, *reasons, *(f"answers\n{label}" for label in labels))
    for name in columns:
        table.add_column(name.replace("_", "\n"), justify="right")
    for found in yields:
        table.add_row(
            str(found["policy_version"]),
            str(found["prompts"]),
            str(found["gave"]),
            f"{found['share']:.1%}",
            *(str(found.get(name, "")) for name in annotator),
            *(str(found["lost"].get(reason, 0)) for reason in reasons),
            *(str(found.get("labels", {}).get(label, 0)) for label in labels),
        )
    return table
