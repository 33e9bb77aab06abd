"""What is told of a reward model: tables for the terminal, and the card in its folder."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from online_dpo.reports.layout import number, titled

_CARD = """\
---
library_name: transformers
pipeline_tag: text-classification
tags: [reward-model, online-dpo, trl]
---

# Reward model

Bradley-Terry training of {base} on {num_training_pairs} pairs by `online-dpo reward-model` and TRL's `RewardTrainer`.
The score of an answer is the one logit of the model. It is used as it is by

```yaml
judge: {{type: reward_model, path: THIS_FOLDER{dtype}}}
```

An input longer than {max_tokens} tokens loses the start of its prompt, in training and in the judge. The file
`reward_model.json` has the settings, what became of each preference, the course of the training, and these figures of
the {num_heldout_pairs} held-out pairs, with 95 % intervals of a bootstrap over prompts:

{figures}

| confidence | pairs | mean confidence | right |
|---|---|---|---|
{bins}
"""


def write_card(report: Mapping[str, Any], file: Path) -> None:
    """Write a short Markdown page about a model into its folder."""
    config, data = report["config"], report["data"]
    bins = report["heldout"]["calibration"]
    rows = "\n".join(f"| {name} | {value} |" for name, value in _figures(report["heldout"]))
    text = _CARD.format(
        base=config["model"]["path"],
        dtype="" if config["model"]["dtype"] == "float32" else f", dtype: {config['model']['dtype']}",
        max_tokens=config["max_tokens"],
        num_training_pairs=data["num_training_pairs"],
        num_heldout_pairs=data["num_heldout_pairs"],
        figures=f"| figure | value |\n|---|---|\n{rows}",
        bins="\n".join(f"| {' | '.join(_bin(entry))} |" for entry in bins),
    )
    file.write_text(text, encoding="utf-8")


def show_report(report: Mapping[str, Any], console: Console) -> None:
    """Print the tables of a report."""
    for place, counts in report["data"]["read"].items():
        known = ("kept", "num_truncated_inputs")
        dropped = ", ".join(f"{name} {count}" for name, count in counts.items() if count and name not in known)
        kept, cut = (counts.get(name, 0) for name in known)
        console.print(f"{place}: {kept} usable pairs (dropped: {dropped or 'none'}; {cut} inputs cut)", highlight=False)
    table = titled("Held-out pairs")
    table.add_column("figure")
    table.add_column("value", justify="right")
    for name, value in _figures(report["heldout"]):
        table.add_row(name, value)
    console.print(table)
    console.print(_calibration(report["heldout"]["calibration"]))


def _figures(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "pairs, of prompts", f"{found['num_pairs']}, {found['num_prompts']}"
    yield "accuracy", _interval(found, "accuracy")
    yield "accuracy of preferring the longer answer", number(found["longer_accuracy"])
    pairs = found["num_where_shorter"]
    yield f"accuracy where the shorter is preferred ({pairs} pairs)", number(found["accuracy_where_shorter"]) or "-"
    yield "correlation of score and length", number(found["length_correlation"]) or "-"
    yield f"log loss ({math.log(2.0):.3f}: knows nothing)", _interval(found, "log_loss")
    yield "expected calibration error", number(found["ece"]) or "-"
    yield "scores: mean, standard deviation", f"{found['score_mean']:.3f}, {found['score_deviation']:.3f}"
    if found["num_tied"]:
        yield "pairs with equal scores", str(found["num_tied"])


def _calibration(bins: list[Mapping[str, float]]) -> Table:
    table = titled("Calibration")
    for name in ("confidence", "pairs", "mean confidence", "right"):
        table.add_column(name, justify="right")
    for entry in bins:
        table.add_row(*_bin(entry))
    return table


def _bin(entry: Mapping[str, float]) -> tuple[str, ...]:
    span = f"{entry['low']:.2f} to {entry['high']:.2f}"
    return span, str(entry["number"]), number(entry["confidence"]), number(entry["accuracy"])


def _interval(found: Mapping[str, Any], name: str) -> str:
    return f"{found[name]:.3f} ({found[f'{name}_low']:.3f} to {found[f'{name}_high']:.3f})"
