"""The answers of all rounds of a run, as much of them as fits one page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from online_dpo.reports.page.answers.cache import SampleCache
from online_dpo.reports.page.answers.sampling import num_bytes
from online_dpo.reports.page.run_record import RunRecord
from online_dpo.store.run_store import RunStore

MAX_CARD_BYTES, MAX_HELD_OUT_BYTES = 2_400_000, 1_000_000
"""Of all rounds' cards, and of the held-out answers: the rest of a page is smaller than what is left of 5 MB."""


def collect_answers(store: RunStore, record: RunRecord, cache: SampleCache) -> dict[str, Any]:
    """What a page shows of the answers, as JSON values.

    Returns:
        `rounds`: `round`, `cards` (see `cards`), and `num_prompts`, `num_completions` and `outcomes` of the whole
        round. `sets`: `set`, `num_prompts`, `judges`, `versions`, and `rows` with `id`, `prompt` and `answers`, by
        version. `adapters`: policy version -> sha256. `problems`: sentences about what could not be read.
    """
    samples = [cache.get(record.config, store.round(index)) for index in record.finished]
    room = MAX_CARD_BYTES // max(1, len(samples))
    rounds = [
        {**{key: sample[key] for key in ("round", "num_prompts", "num_completions", "outcomes")}, "cards": cards}
        for sample in samples
        if (cards := _fitting(sample["cards"], room)) or sample["num_prompts"]
    ]
    sets = _by_set([found for sample in samples for found in sample["held_out"]])
    return {
        "rounds": rounds,
        "sets": _smaller(sets, MAX_HELD_OUT_BYTES),
        "adapters": {str(version): digest for version, digest in record.adapters.items()},
        "problems": [problem for sample in samples for problem in sample["problems"]],
    }


def _fitting(cards: Sequence[dict[str, Any]], room: int) -> list[dict[str, Any]]:
    """The first ones that fit, at least one."""
    found: list[dict[str, Any]] = []
    for card in cards:
        room -= num_bytes(card)
        if room < 0 and found:
            break
        found.append(card)
    return found


def _by_set(evaluated: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Evaluations of one policy each -> sets with the answers of all policies side by side."""
    sets: dict[str, dict[str, Any]] = {}
    for found in evaluated:
        target = sets.setdefault(
            found["set"],
            {"set": found["set"], "num_prompts": found["num_prompts"], "judges": [], "versions": [], "rows": {}},
        )
        target["versions"].append(found["version"])
        for row in found["rows"]:
            kept = target["rows"].setdefault(row["id"], {"id": row["id"], "prompt": None, "answers": {}})
            kept["prompt"] = row["prompt"] if kept["prompt"] is None else kept["prompt"]
            kept["answers"][str(found["version"])] = {k: v for k, v in row.items() if k not in ("id", "prompt")}
            target["judges"] += [judge for judge in row["s"] if judge not in target["judges"]]
    return [{**found, "rows": list(found["rows"].values())} for found in sets.values()]


def _smaller(sets: list[dict[str, Any]], room: int) -> list[dict[str, Any]]:
    """The same sets with as many of their prompts as there is room for."""
    size = num_bytes(sets)
    if size <= room:
        return sets
    return [{**found, "rows": found["rows"][: max(1, len(found["rows"]) * room // size)]} for found in sets]
