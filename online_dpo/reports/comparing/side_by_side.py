"""The answers of several runs to the same held-out prompts."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from online_dpo.reports.comparing.runs import ComparedRun
from online_dpo.reports.page.answers.cards import content_of
from online_dpo.reports.page.answers.held_out import answer_of
from online_dpo.reports.page.answers.sampling import num_bytes

MAX_PROMPTS, MAX_BYTES = 60, 3_000_000
"""Of an evaluation set, and of all sets together."""


def answers_side_by_side(runs: Sequence[ComparedRun]) -> list[dict[str, Any]]:
    """A sample of the prompts that most runs answered, as JSON values.

    Returns:
        For each evaluation set: `set`, `num_prompts` that at least two runs answered, `num_all` that all runs with the
        set answered, `judges`, `versions` (place of a run -> policy) and `rows`: `id`, `prompt` and `answers`, by place
        of the run, as `held_out.answer_of` gives them.
    """
    names = dict.fromkeys(name for run in runs for name in run.evaluated)
    sets = [found for name in names if (found := _of_set(runs, name))["rows"]]
    room = MAX_BYTES // max(1, len(sets))
    return [{**found, "rows": _fitting(found["rows"], room)} for found in sets]


def _of_set(runs: Sequence[ComparedRun], name: str) -> dict[str, Any]:
    having = [run for run in runs if name in run.evaluated]
    times: dict[str, int] = {}
    for run in having:
        for key in run.evaluated[name].completions:
            times[key] = times.get(key, 0) + 1
    common = [key for key, number in times.items() if number > 1]
    # Those that most runs have first, and among these the same arbitrary ones whenever the page is made.
    ranked = sorted(common, key=lambda key: (-times[key], hashlib.sha256(f"{name}/{key}".encode()).digest()))
    return {
        "set": name,
        "num_prompts": len(common),
        "num_all": sum(times[key] == len(having) for key in common),
        "judges": list(dict.fromkeys(judge for run in having for judge in run.evaluated[name].scores)),
        "versions": {str(run.place): run.evaluated[name].version for run in having},
        "rows": [_row(having, name, key) for key in ranked[:MAX_PROMPTS]],
    }


def _row(runs: Sequence[ComparedRun], name: str, key: str) -> dict[str, Any]:
    having = [run for run in runs if key in run.evaluated[name].completions]
    prompts = [run.evaluated[name].prompts[key] for run in having if key in run.evaluated[name].prompts]
    return {
        "id": having[0].evaluated[name].completions[key].prompt_id,
        "prompt": content_of(prompts[0] if prompts else None),
        "answers": {
            str(run.place): answer_of(
                run.evaluated[name].completions[key],
                {judge: given[key] for judge, given in run.evaluated[name].scores.items() if key in given},
                None if run.record.config is None else run.record.config.view,
            )
            for run in having
        },
    }


def _fitting(rows: Sequence[dict[str, Any]], room: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for row in rows:
        room -= num_bytes(row)
        if room < 0 and found:
            break
        found.append(row)
    return found
