"""What `status` tells about a round's prompts: the share that gave something, and why the others did not."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from online_dpo.reports.progress import describe_round
from online_dpo.reports.yields import read_yield, yield_table

PAIRS: dict[str, Any] = {
    "policy_version": 1,
    "num_prompts": 8,
    "num_prompts_too_long": 0,
    "num_prompts_empty": 0,
    "outcomes": {"paired": 5, "tie": 2, "abstained": 0, "over_budget": 1},
    "num_pairs": 9,
}
LABELS: dict[str, Any] = {
    "policy_version": 2,
    "num_prompts": 4,
    "num_prompts_too_long": 0,
    "num_prompts_empty": 0,
    "outcomes": {"labelled": 3, "undecided": 1},
    "labels": {"desirable": 4, "undesirable": 3, "undecided": 1, "abstained": 0},
    "num_desirable": 4,
    "num_undesirable": 3,
}


def test_the_yield_of_a_round() -> None:
    assert read_yield(PAIRS) == {
        "policy_version": 1,
        "prompts": 8,
        "gave": 5,
        "share": 0.625,
        "lost": {"tie": 2, "over_budget": 1},
    }
    found = read_yield(LABELS)
    assert found is not None and (found["gave"], found["share"], found["lost"]) == (3, 0.75, {"undecided": 1})
    assert found["labels"] == LABELS["labels"]
    settled = read_yield({**PAIRS, "annotator": {"num_upheld": 3, "num_overturned": 2}})
    assert settled is not None and settled["overturned"] == 2
    assert read_yield({"policy_version": 1, "num_pairs": 3}) is None, "a round on a data set samples nothing"


def test_the_table_has_a_row_for_each_round_and_a_column_for_each_reason() -> None:
    console = Console(width=200, file=io.StringIO())
    console.print(yield_table([y for y in map(read_yield, (PAIRS, LABELS)) if y is not None]))
    rows = [line.split() for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]
    # round, prompts, used, share, tie, over_budget, undecided, then answers: desirable, undesirable, undecided
    assert rows[-2:] == [
        ["1", "8", "5", "62.5%", "2", "1", "0", "0", "0", "0"],
        ["2", "4", "3", "75.0%", "0", "0", "1", "4", "3", "1"],
    ]


def test_the_table_tells_what_an_annotator_overturned() -> None:
    console = Console(width=200, file=io.StringIO())
    settled = {**PAIRS, "annotator": {"num_upheld": 3, "num_overturned": 2}, "outcomes": {"paired": 8}}
    console.print(yield_table([y for y in map(read_yield, (settled,)) if y is not None]))
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert lines[-1].split() == ["1", "8", "8", "100.0%", "2"] and "overturned" in lines[-2]


def test_the_line_of_a_round_names_what_it_gave_and_what_it_did_not() -> None:
    assert describe_round(PAIRS) == "9 pairs from 8 prompts (no pair: tie 2, over_budget 1)"
    assert describe_round(LABELS) == "7 labelled answers from 4 prompts (no label: undecided 1)"
