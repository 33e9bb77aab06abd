"""Markdown tables and plots of a study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from plan import Task
from reading import Point, estimate, mean_of

Runs = Mapping[str, Sequence[Sequence[Point]]]
"""Arm -> seed -> evaluated policies."""

SHOWN_FIGURES = {"KL to initial": ("kl_initial", 2), "entropy": ("entropy", 2), "distinct-2": ("distinct_2", 3)}
"""Title -> the figure on the first set, and its digits; answers of a single word have no pairs of words to count."""

YIELD = 0.02
"""The share of pairs that an arm may lack: prompts whose answers gave none."""


def check_equal(runs: Runs) -> None:
    """See that all runs trained on as many pairs of as many judged prompts in as many optimizer steps.

    Raises:
        SystemExit: they did not, so that nothing may be compared.
    """
    last = [(arm, seed[-1]) for arm, seeds in runs.items() for seed in seeds]
    most = max(point.pairs for _, point in last)
    for arm, point in last:
        same = point.prompts == last[0][1].prompts and point.steps == last[0][1].steps
        if not same or point.pairs < (1.0 - YIELD) * most:
            found = ", ".join(f"{name}: {p.prompts} prompts, {p.pairs} pairs, {p.steps} steps" for name, p in last)
            raise SystemExit(f"{arm} differs in what it was given, so its results do not compare ({found})")


def shown(values: tuple[float, float, float], digits: int = 2) -> str:
    return "{:+.{d}f} [{:+.{d}f}, {:+.{d}f}]".format(*values, d=digits)


def rows_of(task: Task, runs: Runs, beside: Mapping[str, str], *, seconds: bool = False) -> list[list[str]]:
    """The header, and a row for each arm: what was spent, gains, KL and diversity, and differences to another arm.

    Args:
        task: whose sets and judges are shown.
        runs: the study's.
        beside: arm -> the one that it is compared with, or itself.
        seconds: the medians over seeds of what the sampling stage took are a column.
    """
    keys = [(name, judge) for name in task.sets for judge in task.judges]
    main = task.sets[0]
    titles = {key: key[1] if key[0] == main else key[0] for key in keys}
    head = [
        "",
        "pairs, steps",
        "tokens sampled",
        *(["s sampling"] if seconds else []),
        *(f"{titles[key]} gain" for key in keys),
    ]
    names = set(beside.values())
    name = names.pop() if len(names) == 1 else "the same offline"
    head += [*SHOWN_FIGURES, *(f"{titles[key]} beside {name}" for key in keys)]
    table = [head]
    for arm, seeds in runs.items():
        last = [points[-1] for points in seeds]
        row = [arm, f"{np.mean([p.pairs for p in last]):.0f}, {last[0].steps}"]
        row += [f"{np.mean([p.tokens for p in last]) / 1000:.1f} k"]
        row += [f"{np.median([p.seconds for p in last]):.0f}"] if seconds else []
        row += [shown(estimate([p.gains[key] for p in last])) for key in keys]
        for figure, digits in SHOWN_FIGURES.values():
            values = [value for p in last if (value := p.figures[main, figure]) is not None]
            row.append(f"{np.mean(values):.{digits}f}" if values else "")
        other = [points[-1] for points in runs[beside[arm]]]
        row += [difference(last, other, key) if arm != beside[arm] else "" for key in keys]
        table.append(row)
    return table


def difference(ours: Sequence[Point], theirs: Sequence[Point], key: tuple[str, str]) -> str:
    """The difference of two arms with its interval, and the mean difference of each seed."""
    found = estimate([p.gains[key] for p in ours], [p.gains[key] for p in theirs])
    by_seed = [mean_of(a.gains[key]) - mean_of(b.gains[key]) for a, b in zip(ours, theirs, strict=True)]
    return f"{shown(found)} ({', '.join(f'{value:+.2f}' for value in by_seed)})"


def markdown(table: Sequence[Sequence[str]]) -> str:
    head, *rows = table
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def plot(task: Task, runs: Runs, out: Path, *, over: str) -> None:
    """Gains of the last policies with their intervals, and beside them every evaluated policy.

    Args:
        task: whose last judge is shown, on its first set.
        runs: the study's.
        out: the SVG.
        over: the second panel's horizontal axis, `kl` or `seconds`.
    """
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "online-dpo"  # the same figures give the same file
    from matplotlib import pyplot

    key = (task.sets[0], task.judges[-1])
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 0.6 + 0.42 * max(6, len(runs))))
    for place, (arm, seeds) in enumerate(runs.items()):
        look = {"color": f"C{place % 10}", "marker": "os"[place // 10]}
        gains = np.array([[mean_of(p.gains[key]) for p in points] for points in seeds])
        spent = [[p.figures[key[0], "kl_initial"] if over == "kl" else p.seconds for p in s] for s in seeds]
        mean, low, high = estimate([points[-1].gains[key] for points in seeds])
        left.errorbar(mean, -place, xerr=[[mean - low], [high - mean]], capsize=3, **look)
        left.plot(gains[:, -1], [-place - 0.25] * len(seeds), linestyle="", markersize=3, alpha=0.6, **look)
        right.plot([0, *np.mean(spent, axis=0)], [0, *gains.mean(axis=0)], markersize=4, label=arm, **look)
    left.set_yticks([-place for place in range(len(runs))], list(runs))
    name = "gold, log-odds" if key[1] == "gold" else "share of right answers"
    left.set_xlabel(f"{name}: gain over the initial policy")
    right.set_ylabel(f"{name}: gain")
    right.set_xlabel("KL to the initial policy, nats per completion" if over == "kl" else "seconds of sampling")
    right.legend(fontsize=7)
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.tight_layout()
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, metadata={"Date": None})
