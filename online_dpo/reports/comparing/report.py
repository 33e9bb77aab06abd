"""The page about several runs, put together."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from online_dpo.reports.comparing.curves import final_table, joined_charts
from online_dpo.reports.comparing.runs import ComparedRun
from online_dpo.reports.comparing.settings import config_rows, origin_rows
from online_dpo.reports.comparing.side_by_side import answers_side_by_side
from online_dpo.reports.comparing.wins import Contest, Pairing, contests
from online_dpo.reports.page.charts import mark_of
from online_dpo.reports.page.headline import Tone
from online_dpo.reports.page.rendering import render
from online_dpo.reports.page.report import progress
from online_dpo.reports.results import Estimate
from online_dpo.version import __version__


def comparison_page(runs: Sequence[ComparedRun]) -> str:
    """The comparison of runs as they stand, as HTML."""
    found = contests(runs)
    sentence, tone = verdict(runs, found)
    marks = [mark_of(run.place) for run in runs]
    charts, more_charts = joined_charts(runs)
    header, rows = final_table(runs)
    answers = answers_side_by_side(runs)
    return render(
        "compare.html.jinja",
        further=("compare.css", "compare.js"),
        data={
            "labels": [run.label for run in runs],
            "marks": marks,
            "compared": answers,
        },
        runs=runs,
        marks=marks,
        progress=[progress(run.record) for run in runs],
        sentence=sentence,
        tone=tone,
        lengths=_lengths(runs),
        problems=[f"{run.label}: {problem}" for run in runs for problem in run.problems],
        contests=found,
        tables=[_table(runs, contest) for contest in found],
        final_header=header,
        final_rows=rows,
        charts=charts,
        more_charts=more_charts,
        config_rows=config_rows(runs),
        origin_rows=origin_rows(runs),
        answers=answers,
        written=time.strftime("%Y-%m-%d %H:%M:%S %Z"),
        version=__version__,
    )


def verdict(runs: Sequence[ComparedRun], found: Sequence[Contest]) -> tuple[str, Tone]:
    """Which run is better, in a sentence, by the first contest in which runs were paired."""
    contest = next((contest for contest in found if contest.pairings), None)
    if contest is None:
        return (
            "Which run is better cannot be told: no two of them have held-out prompts in common that the same judge "
            "scored. Their curves and figures stand side by side.",
            "open",
        )
    if len(runs) == 2:
        return _of_two(runs, contest)
    met = [(run, [pairing for (i, _), pairing in contest.pairings.items() if i == run.place]) for run in runs]
    for run, pairings in met:
        if len(pairings) == len(runs) - 1 and all(pairing.is_better for pairing in pairings):
            least = min((pairing.wins for pairing in pairings), key=lambda wins: wins.value)
            better = f"{run.label} is better than all others"
            return f"By {contest.title}, {better}: it wins at least {share(least)}.", "good"
    most, average = max(
        ((run.label, sum(p.wins.value for p in pairings) / len(pairings)) for run, pairings in met if pairings),
        key=lambda each: each[1],
    )
    return (
        f"By {contest.title}, no run is better than all others by more than chance. {most} wins most: "
        f"{100 * average:.0f}\u00a0% of the prompts it shares with another run, on average.",
        "open",
    )


def _of_two(runs: Sequence[ComparedRun], contest: Contest) -> tuple[str, Tone]:
    pairing = contest.pairings[0, 1]
    better, worse = (runs[0], runs[1]) if pairing.wins.value >= 0.5 else (runs[1], runs[0])
    wins = contest.pairings[better.place, worse.place].wins
    prompts = f"{pairing.num_common} common prompt{'s' if pairing.num_common > 1 else ''}"
    if contest.pairings[better.place, worse.place].is_better:
        return (
            f"By {contest.title}, {better.label} is better than {worse.label}: it wins {share(wins)} of their "
            f"{prompts}.",
            "good",
        )
    return (
        f"By {contest.title}, neither {runs[0].label} nor {runs[1].label} is better by more than chance: "
        f"{better.label} wins {share(wins)} of their {prompts}.",
        "open",
    )


def share(estimate: Estimate) -> str:
    """A share with its interval, in per cent."""
    return f"{100 * estimate.value:.0f}\u00a0% [{100 * estimate.low:.0f}, {100 * estimate.high:.0f}]"


def _table(runs: Sequence[ComparedRun], contest: Contest) -> list[tuple[str, list[Pairing | None]]]:
    """Of each run that was paired: its label, and what came of it against each of these runs."""
    places = [run.place for run in runs if any(run.place == i for i, _ in contest.pairings)]
    return [(runs[i].label, [contest.pairings.get((i, j)) for j in places]) for i in places]


def _lengths(runs: Sequence[ComparedRun]) -> str:
    """A sentence where the newest policies are of different rounds."""
    versions = {run.label: max((e.version for e in run.evaluated.values()), default=None) for run in runs}
    known: dict[str, Any] = {label: version for label, version in versions.items() if version is not None}
    if len(set(known.values())) < 2:
        return ""
    return f"The policies compared are of different rounds: {', '.join(f'{k} {v}' for k, v in known.items())}."
