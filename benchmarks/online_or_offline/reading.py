"""What finished runs tell: gains by held-out prompt, KL, diversity, and what was spent; and intervals over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

FIGURES = ("kl_initial", "entropy", "distinct_2")


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """An evaluated policy of a run."""

    pairs: int  # trained on until then
    steps: int
    prompts: int
    tokens: int  # sampled for training until then
    seconds: float  # of the sampling stage until then, pushes and checks included
    gains: Mapping[tuple[str, str], Mapping[str, float]]  # (set, judge) -> prompt -> score over the initial policy's
    scores: Mapping[tuple[str, str], float]  # (set, judge) -> mean
    initial: Mapping[tuple[str, str], float]  # the same of the initial policy
    figures: Mapping[tuple[str, str], float | None]  # (set, name of `FIGURES`)


def read_run(run_dir: Path, sets: Sequence[str], judges: Sequence[str]) -> list[Point]:
    """The evaluated policies of a run, the last one last."""
    from online_dpo.commands.status import read_status
    from online_dpo.loop.evaluation import committed_evaluation
    from online_dpo.store.run_store import RunStore

    points: list[Point] = []
    spent: dict[str, Any] = {"pairs": 0, "steps": 0, "prompts": 0, "tokens": 0, "seconds": 0.0}
    with RunStore.read(run_dir) as store:
        first = {name: committed_evaluation(store, name, 0)["scores"] for name in sets}
        initial = {(name, judge): mean_of(first[name][judge]) for name in sets for judge in judges}
        for record in read_status(run_dir)["rounds"]:
            spent["pairs"] += trained_pairs(record)
            spent["steps"] += record["num_steps"]
            spent["prompts"] += record["num_prompts"]
            spent["tokens"] += round(record["num_completions"] * record["length_mean"])
            spent["seconds"] += record["seconds"]["sampling"]
            if not record["evaluation"]:
                continue
            last = {name: committed_evaluation(store, name, record["policy_version"])["scores"] for name in sets}
            found = record["evaluation"]
            points.append(
                Point(
                    **spent,
                    gains={(n, j): gains_of(first[n][j], last[n][j]) for n in sets for j in judges},
                    scores={(n, j): mean_of(last[n][j]) for n in sets for j in judges},
                    initial=initial,
                    figures={(n, name): found[n][name] for n in sets for name in FIGURES},
                )
            )
    return points


def trained_pairs(record: Mapping[str, Any]) -> int:
    """Pairs of a round; KTO has both answers of each as single ones."""
    if "num_pairs" in record:
        return int(record["num_pairs"])
    return (int(record["num_desirable"]) + int(record["num_undesirable"])) // 2


def gains_of(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    return {prompt: after[prompt] - before[prompt] for prompt in before if prompt in after}


def mean_of(scores: Mapping[str, float]) -> float:
    return float(np.mean(list(scores.values())))


def estimate(
    ours: Sequence[Mapping[str, float]], theirs: Sequence[Mapping[str, float]] = (), *, num_resamples: int = 4000
) -> tuple[float, float, float]:
    """The mean over seeds and prompts, with an interval of 95 % that resamples both.

    Seeds and prompts are drawn with replacement independently of each other (the crossed bootstrap of Owen, 2007,
    "The pigeonhole bootstrap"), because every seed answers the same prompts. Three seeds say little about other seeds:
    the interval is too short by what their spread is underestimated.

    Args:
        ours: for each seed prompt -> value.
        theirs: subtracted, for the same seeds in the same order.

    Returns:
        `(mean, low, high)`.
    """
    prompts = sorted(set.intersection(*(set(found) for found in (*ours, *theirs))))
    values = np.array([[found[prompt] for prompt in prompts] for found in ours])
    if theirs:
        values = values - np.array([[found[prompt] for prompt in prompts] for found in theirs])
    draw = np.random.default_rng(0)
    rows = draw.integers(0, values.shape[0], size=(num_resamples, values.shape[0]))
    columns = draw.integers(0, values.shape[1], size=(num_resamples, values.shape[1]))
    means = [values[np.ix_(some, others)].mean() for some, others in zip(rows, columns, strict=True)]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(values.mean()), float(low), float(high)
