"""What `online-dpo status` shows by domain: the newest round, and the newest evaluation. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from online_dpo.reports.layout import number, percent, titled
from online_dpo.text_files import printable
from online_dpo.types import REWARD

OWN_COLUMNS = ("domain", "prompts", "used", "reward\nat first", "reward", "length", "cut")


def domain_tables(rounds: Sequence[Mapping[str, Any]]) -> Iterator[Table]:
    """Tables of what has several domains.

    Args:
        rounds: lines of `metrics.jsonl` of the kind `round_done`.
    """
    of_rounds = [record for record in rounds if len(record.get("domains", ())) > 1]
    if of_rounds:
        yield _own_table(of_rounds[0], of_rounds[-1])
    evaluated = [
        (record, sets)
        for record in rounds
        if (sets := {name: e for name, e in record["evaluation"].items() if len(e.get("domains", ())) > 1})
    ]
    if evaluated:
        yield _evaluated_table(*evaluated[-1])


def _own_table(first: Mapping[str, Any], last: Mapping[str, Any]) -> Table:
    """One row for each domain that the newest round sampled."""
    table = titled(f"round {last['policy_version']} by domain")
    for name in OWN_COLUMNS:
        table.add_column(name, justify="left" if name == "domain" else "right")
    for domain, figures in last["domains"].items():
        table.add_row(
            Text(printable(domain)),
            str(figures["num_prompts"]),
            percent(figures["num_prompts_used"] / figures["num_prompts"]),
            number(first["domains"].get(domain, {}).get(REWARD)),
            number(figures[REWARD]),
            number(figures["length_mean"]),
            percent(figures["num_truncated_completions"] / figures["num_completions"]),
        )
    return table


def _evaluated_table(record: Mapping[str, Any], sets: Mapping[str, Mapping[str, Any]]) -> Table:
    """One row for each domain of each evaluation set; in brackets the 95 % interval of the gain over the start."""
    table = titled(f"fresh samples after round {record['policy_version']}, by domain")
    judges = list(dict.fromkeys(judge for e in sets.values() for d in e["domains"].values() for judge in d["judges"]))
    for name in ("set", "domain", "prompts", *judges, "KL", "length"):
        table.add_column(name, justify="left" if name in ("set", "domain") else "right")
    for name, evaluation in sets.items():
        for domain, figures in evaluation["domains"].items():
            table.add_row(
                name,
                Text(printable(domain)),
                str(figures["num_prompts"]),
                *(_score(figures["judges"].get(judge, {})) for judge in judges),
                number(figures.get("kl_initial")),
                number(figures["length_mean"]),
            )
    return table


def _score(found: Mapping[str, Any]) -> Text:
    gain = "" if found.get("gain") is None else " [{:+.2f}, {:+.2f}]".format(*found["gain"][1:])
    return Text(number(found.get("mean")) + gain)
