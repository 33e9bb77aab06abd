"""Charts as inline SVG: what is drawn, and where each line and bar of it goes. `charts.html.jinja` writes the markup.

Lines differ in colour, in dashes and in the shape of their marks, bars in colour and hatching. Behind every chart is a
table of the same numbers, for those who cannot see it and for those who want the digits.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal, NamedTuple

WIDTH, HEIGHT = 380, 230
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 12, 36
NUM_STYLES = 12
"""Colours and dashes that the style sheet knows; a thirteenth series looks like the first. There are 8 hatchings."""

_MARKS = (
    "M-3,0a3,3 0 1 0 6,0a3,3 0 1 0 -6,0",
    "M-3,-3h6v6h-6z",
    "M0,-4l4,7h-8z",
    "M0,-4.2l4.2,4.2l-4.2,4.2l-4.2,-4.2z",
)
_MOST_MARKS = 24


class Point(NamedTuple):
    """One value, with its 95 % interval where it has one."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One line, or one colour of the bars."""

    name: str
    points: Sequence[Point]  # in the order in which a line goes through them
    style: int | None = None  # of its colour, dashes and mark; None = by its place in the chart


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """What a chart shows."""

    key: str  # unique on a page; charts of several runs that have the same key show the same thing
    title: str
    unit: str  # what the numbers are, such as "nats per completion"
    series: Sequence[Series]
    kind: Literal["lines", "bars", "path"] = "lines"  # path: the x of a point is a figure as well
    x_name: str = "round"
    note: str = ""  # a sentence under the title
    level: float | None = None  # a value with a line of its own, such as a win rate of one half
    is_crowded: bool = False  # too many lines for bands and labels: intervals are in the table alone
    within: tuple[float, float] | None = None  # what the axis shows at least, such as all shares


class Tick(NamedTuple):
    """A number on an axis."""

    at: float  # position, in units of the drawing
    label: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Stroke:
    """One series as it is drawn."""

    name: str
    style: int
    line: str  # path data; empty = none
    band: str  # the same of its interval
    marks: Sequence[tuple[float, float]]
    mark: str  # path data of the shape
    label: tuple[float, float] | None  # where the newest point of a path is named
    bars: Sequence[tuple[float, float, float, float]]  # x, y, width, height


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """A chart with all positions settled."""

    chart: Chart
    strokes: Sequence[Stroke]
    x_ticks: Sequence[Tick]
    y_ticks: Sequence[Tick]
    level: float | None
    stops: Sequence[float]  # x positions of the rows of the table, for the readout
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    summary: str  # what a screen reader says in place of the picture


def draw(chart: Chart) -> Drawing | None:
    """Settle all positions; None where there is nothing to show.

    Args:
        chart: points whose value is not finite are left out.
    """
    series = [replace(s, points=[p for p in s.points if _is_finite(p)]) for s in chart.series]
    series = [s for s in series if s.points]
    if not series:
        return None
    xs = sorted({p.x for s in series for p in s.points})
    x_scale, x_ticks = _x_axis(chart, xs)
    low, high = _extent(chart, series)
    y_values = _ticks(low, high, 5)
    low, high = min(low, y_values[0]), max(high, y_values[-1])
    y_scale = _Scale(low, high, HEIGHT - BOTTOM, TOP)
    strokes = _bars(series, xs, x_scale, y_scale) if chart.kind == "bars" else _lines(chart, series, x_scale, y_scale)
    header, rows, stops = _table(chart, series, x_scale)
    return Drawing(
        chart=chart,
        strokes=strokes,
        x_ticks=x_ticks,
        y_ticks=[Tick(y_scale(value), text) for value, text in zip(y_values, _labels(y_values), strict=True)],
        level=y_scale(chart.level) if chart.level is not None and low <= chart.level <= high else None,
        stops=stops,
        header=header,
        rows=rows,
        summary=_summary(chart, series),
    )


class _Scale:
    """Values of an axis -> positions."""

    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        self._low, self._span = low, (high - low) or 1.0
        self._start, self._length = start, end - start

    def __call__(self, value: float) -> float:
        return round(self._start + self._length * (value - self._low) / self._span, 1)


def mark_of(style: int) -> str:
    """Path data of a line's marks."""
    return _MARKS[style % len(_MARKS)]


def number(value: float) -> str:
    """A figure for people, four digits of it."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else str(value)
    if abs(value) >= 1e6 or abs(value) < 1e-3:
        return f"{value:.2e}"
    if float(value).is_integer():
        return f"{value:.0f}"
    return f"{value:.{max(0, 3 - math.floor(math.log10(abs(value))))}f}" if abs(value) < 1000 else f"{value:.0f}"


def _is_finite(point: Point) -> bool:
    return all(value is None or math.isfinite(value) for value in point)


def _x_axis(chart: Chart, xs: Sequence[float]) -> tuple[_Scale, list[Tick]]:
    margin = 0.0
    if chart.kind == "bars":
        margin = 0.5
    elif xs[0] == xs[-1]:
        margin = 1.0 if chart.kind == "lines" else max(abs(xs[0]), 1.0) / 2
    low, high = xs[0] - margin, xs[-1] + margin
    if chart.kind == "path":
        values = _ticks(low, high, 5)
        low, high = min(low, values[0]), max(high, values[-1])
    else:
        wanted = (xs[-1] - xs[0]) / 8
        step = next(step for power in range(9) for step in (10**power, 2 * 10**power, 5 * 10**power) if step >= wanted)
        values = [x for x in range(math.ceil(xs[0]), math.floor(xs[-1]) + 1) if x % step == 0] or [xs[0]]
    scale = _Scale(low, high, LEFT, WIDTH - RIGHT)
    return scale, [Tick(scale(value), text) for value, text in zip(values, _labels(values), strict=True)]


def _extent(chart: Chart, series: Sequence[Series]) -> tuple[float, float]:
    if chart.kind == "bars":
        totals: dict[float, float] = {}
        for s in series:
            for p in s.points:
                totals[p.x] = totals.get(p.x, 0.0) + p.y
        return 0.0, max(totals.values()) or 1.0
    shown = [(p.y, p.low, p.high) if not chart.is_crowded else (p.y,) for s in series for p in s.points]
    values = [value for point in shown for value in point if value is not None]
    values += [chart.level] if chart.level is not None else []
    low, high = min([*values, *(chart.within or ())]), max([*values, *(chart.within or ())])
    if low == high:
        return (0.0, 1.0) if low == 0.0 else (low - abs(low) / 10, high + abs(high) / 10)
    return low, high


def _ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers that enclose the values, about `most` of them."""
    rough = (high - low) / most or 1.0
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


def _labels(values: Sequence[float]) -> list[str]:
    """As many digits as tell the ticks apart, and the same for all."""
    step = min((b - a for a, b in pairwise(values)), default=1.0)
    largest = max(abs(value) for value in values)
    if largest >= 1e6 or 0 < largest < 1e-3:
        written = ([f"{value:.{digits}e}" if value else "0" for value in values] for digits in range(1, 18))
        return next(labels for labels in written if len(set(labels)) == len(values))
    digits = next(d for d in range(40) if abs(round(step, d) - step) < 1e-3 * step)
    return [f"{value + 0.0:.{digits}f}" for value in values]


def _lines(chart: Chart, series: Sequence[Series], x_scale: _Scale, y_scale: _Scale) -> list[Stroke]:
    strokes = []
    for place, s in enumerate(series):
        style = (place if s.style is None else s.style) % NUM_STYLES
        places = [(x_scale(p.x), y_scale(p.y)) for p in s.points]
        every = math.ceil(len(places) / _MOST_MARKS)
        marked = [place for i, place in enumerate(places) if i % every == 0 or i == len(places) - 1]
        with_interval = [p for p in s.points if p.low is not None and p.high is not None]
        band = [(x_scale(p.x), y_scale(p.high or 0.0)) for p in with_interval]
        band += [(x_scale(p.x), y_scale(p.low or 0.0)) for p in reversed(with_interval)]
        strokes.append(
            Stroke(
                name=s.name,
                style=style,
                line=_path(places),
                band="" if len(with_interval) < 2 or chart.kind == "path" or chart.is_crowded else _path(band) + "Z",
                marks=marked,
                mark=mark_of(style),
                label=_newest(places) if chart.kind == "path" and not chart.is_crowded else None,
                bars=(),
            )
        )
    return strokes


def _newest(places: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Where the word stands that names a path's last point."""
    x, y = places[-1]
    return min(x, WIDTH - RIGHT - 18.0), y - 8.0


def _bars(series: Sequence[Series], xs: Sequence[float], x_scale: _Scale, y_scale: _Scale) -> list[Stroke]:
    slot = (WIDTH - LEFT - RIGHT) / (xs[-1] - xs[0] + 1)
    width = round(min(slot * 0.72, 36.0), 1)
    floor = dict.fromkeys(xs, 0.0)
    strokes = []
    for place, s in enumerate(series):
        style = (place if s.style is None else s.style) % NUM_STYLES
        bars = []
        for p in s.points:
            top, bottom = y_scale(floor[p.x] + p.y), y_scale(floor[p.x])
            floor[p.x] += p.y
            if bottom > top:
                bars.append((round(x_scale(p.x) - width / 2, 1), top, width, round(bottom - top, 1)))
        strokes.append(Stroke(name=s.name, style=style, line="", band="", marks=(), mark="", label=None, bars=bars))
    return strokes


def _path(places: Iterable[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:g},{y:g}" for x, y in places)


def _table(chart: Chart, series: Sequence[Series], x_scale: _Scale) -> tuple[list[str], list[list[str]], list[float]]:
    """Header, rows, and the position of each row."""
    if chart.kind == "path":
        header = ["", chart.x_name, chart.unit]
        points = [(s.name, p) for s in series for p in s.points]
        return header, [[name, number(p.x), _cell(p)] for name, p in points], [x_scale(p.x) for _, p in points]
    xs = sorted({p.x for s in series for p in s.points})
    by_x: list[Mapping[float, Point]] = [{p.x: p for p in s.points} for s in series]
    rows = [[number(x), *(_cell(found.get(x)) for found in by_x)] for x in xs]
    return [chart.x_name, *(s.name for s in series)], rows, [x_scale(x) for x in xs]


def _cell(point: Point | None) -> str:
    if point is None:
        return ""
    if point.low is None or point.high is None:
        return number(point.y)
    return f"{number(point.y)} [{number(point.low)}, {number(point.high)}]"


def _summary(chart: Chart, series: Sequence[Series]) -> str:
    parts = [
        f"{s.name}: {number(s.points[0].y)} at {chart.x_name} {number(s.points[0].x)}, "
        f"{number(s.points[-1].y)} at {chart.x_name} {number(s.points[-1].x)}"
        if len(s.points) > 1
        else f"{s.name}: {number(s.points[0].y)} at {chart.x_name} {number(s.points[0].x)}"
        for s in series
    ]
    return f"{chart.title}, {chart.unit}. {'. '.join(parts)}."
