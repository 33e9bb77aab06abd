"""The curves of several runs on common axes, and their newest figures in one table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from online_dpo.reports.comparing.runs import ComparedRun
from online_dpo.reports.page.charts import Chart, Point, Series
from online_dpo.reports.page.run_charts import run_charts
from online_dpo.reports.results import Estimate, EvaluationResult, RoundResult
from online_dpo.reports.yields import GAVE
from online_dpo.types import REWARD

FIRST = ("reward", "judge-", "wins", "kl", "frontier", "preferences", "accuracy", "length")
"""Keys of the charts, or how they begin, that stand before the fold."""
MOST_BANDS = 2
"""Of more runs the intervals are not drawn: they would cover each other."""


def joined_charts(runs: Sequence[ComparedRun]) -> tuple[list[Chart], list[Chart]]:
    """One chart for each figure, with a line for each run.

    Returns:
        Those that most readers want, and the rest.
    """
    of_runs = [{chart.key: chart for chart in run_charts(run.record.results, run.record.initial)} for run in runs]
    keys = dict.fromkeys(key for charts in of_runs for key in charts)
    joined = [chart for key in keys for chart in _joined(runs, [charts.get(key) for charts in of_runs])]
    is_first = [chart.key.startswith(FIRST) for chart in joined]
    return (
        [chart for chart, first in zip(joined, is_first, strict=True) if first],
        [chart for chart, first in zip(joined, is_first, strict=True) if not first],
    )


def _joined(runs: Sequence[ComparedRun], charts: Sequence[Chart | None]) -> Iterator[Chart]:
    """A chart for each line that any of the runs has; bars become the line of their sum."""
    lines = [{} if chart is None else _lines(chart) for chart in charts]
    names = list(dict.fromkeys(name for found in lines for name, points in found.items() if points))
    chart = next(chart for chart in charts if chart is not None)
    for place, name in enumerate(names):
        series = [
            Series(name=run.label, points=found[name], style=run.place)
            for run, found in zip(runs, lines, strict=True)
            if found.get(name)
        ]
        without = [run.label for run, found in zip(runs, lines, strict=True) if not found.get(name)]
        notes = [_note(chart, series), f"Without it: {', '.join(without)}." if without else ""]
        title = f"{chart.title}: {name}" if name and (len(names) > 1 or chart.kind == "bars") else chart.title
        yield replace(
            chart,
            key=f"{chart.key}-{place}",
            title=title,
            kind="path" if chart.kind == "path" else "lines",
            series=series,
            is_crowded=len(series) > MOST_BANDS,
            note=" ".join(note for note in notes if note),
        )


def _note(chart: Chart, series: Sequence[Series]) -> str:
    if chart.kind == "bars":
        return ""
    has_intervals = any(point.low is not None for each in series for point in each.points)
    if not has_intervals:
        return ""
    return chart.note if len(series) <= MOST_BANDS else "Intervals are in the table."


def _lines(chart: Chart) -> Mapping[str, Sequence[Point]]:
    if chart.kind != "bars":
        return {series.name: series.points for series in chart.series}
    gave = {name.replace("_", " ") for name in GAVE}
    given = [series for series in chart.series if chart.key != "yield" or series.name in gave]
    totals: dict[float, float] = {}
    for series in given:
        for point in series.points:
            totals[point.x] = totals.get(point.x, 0.0) + point.y
    return {"that are trained on" if chart.key == "yield" else "all": [Point(x, y) for x, y in sorted(totals.items())]}


def final_table(runs: Sequence[ComparedRun]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the newest figures, a row for each run; a column that no run has a figure for is left out."""
    of_runs = [_final(run) for run in runs]
    names = dict.fromkeys(name for figures in of_runs for name in figures)
    rows = [[run.label, *(figures.get(name, "") for name in names)] for run, figures in zip(runs, of_runs, strict=True)]
    return ["run", *names], rows


def _final(run: ComparedRun) -> dict[str, str]:
    record = run.record
    of_all = "" if record.num_rounds is None else f" of {record.num_rounds}"
    found = {"rounds": f"{len(record.finished)}{of_all}"}
    several = len(run.evaluated) > 1
    for name, evaluated in run.evaluated.items():
        evaluation = _evaluation(run, name, evaluated.version)
        where = f" on {name}" if several else ""
        if evaluation is not None:
            found[f"policy{where}"] = str(evaluated.version)
            found |= {f"{figure}{where}": value for figure, value in _figures(evaluation)}
    if record.results:
        found |= _of_round(record.results[-1])
    return found


def _evaluation(run: ComparedRun, name: str, version: int) -> EvaluationResult | None:
    if version == 0:
        return run.record.initial.get(name)
    return next((r.evaluation.get(name) for r in run.record.results if r.policy_version == version), None)


def _figures(evaluation: EvaluationResult) -> Iterator[tuple[str, str]]:
    judged = sorted(evaluation.judges.items(), key=lambda each: each[0] == REWARD)
    for judge, found in judged:
        if found.mean is not None:
            yield f"{judge}\nmean", short(found.mean)
        if found.gain is not None:
            yield f"{judge}\ngain", interval(found.gain)
    for name, value in (
        ("KL to\nits start", evaluation.kl_initial),
        ("KL to its\nreference", evaluation.kl_reference),
        ("tokens", evaluation.sampling.length_mean),
        ("distinct-2", evaluation.sampling.distinct_2),
    ):
        if value is not None:
            yield name, short(value)
    for judge, found in judged:
        if found.win_rate is not None:
            yield f"{judge}\nwins over its start", interval(found.win_rate)


def _of_round(result: RoundResult) -> dict[str, str]:
    figures = {
        "reward of\nits samples": result.judging.reward,
        "loss": result.learning.loss,
        "reward\naccuracy": result.learning.reward_accuracy,
        "seconds of\nthe round": sum(result.seconds.values()) if result.seconds else None,
    }
    return {name: short(value) for name, value in figures.items() if value is not None}


def interval(found: Estimate) -> str:
    """A value with its interval."""
    return f"{short(found.value)} [{short(found.low)}, {short(found.high)}]"


def short(value: float) -> str:
    """Three digits, which is as many as a table of samples deserves."""
    return f"{value:.3g}"
