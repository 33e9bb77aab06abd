"""Charts: positions by hand, and no value that would make a line lie."""

from __future__ import annotations

import math
import re

import pytest

from online_dpo.reports.page.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Chart, Point, Series, draw


def chart(*series: Series, **fields: object) -> Chart:
    return Chart(key="k", title="T", unit="u", series=series, **fields)  # type: ignore[arg-type]


def line(*points: tuple[float, ...], name: str = "a") -> Series:
    return Series(name=name, points=[Point(*point) for point in points])


def test_a_line_goes_through_its_points() -> None:
    drawing = draw(chart(line((0, 0.0), (1, 5.0), (2, 10.0))))
    assert drawing is not None
    bottom, middle, right = HEIGHT - BOTTOM, (HEIGHT - BOTTOM + TOP) / 2, WIDTH - RIGHT
    [stroke] = drawing.strokes
    assert stroke.line == f"M{LEFT},{bottom}L{(LEFT + right) / 2:g},{middle:g}L{right},{TOP}"
    assert [tick.label for tick in drawing.y_ticks] == ["0", "2", "4", "6", "8", "10"]
    assert [tick.label for tick in drawing.x_ticks] == ["0", "1", "2"]
    assert drawing.rows == [["0", "0"], ["1", "5"], ["2", "10"]]
    assert drawing.stops == [tick.at for tick in drawing.x_ticks]


def test_an_interval_is_a_band_inside_the_picture() -> None:
    drawing = draw(chart(line((1, 0.0, -1.0, 1.0), (2, 2.0, 0.0, 4.0))))
    assert drawing is not None
    heights = [float(y) for _, y in re.findall(r"([\d.]+),([\d.]+)", drawing.strokes[0].band)]
    assert len(heights) == 4 and min(heights) >= TOP and max(heights) <= HEIGHT - BOTTOM
    assert drawing.rows[1] == ["2", "2 [0, 4]"]


def test_bars_stand_on_each_other() -> None:
    drawing = draw(chart(line((1, 30.0), (2, 10.0)), line((1, 10.0), (2, 30.0), name="b"), kind="bars"))
    assert drawing is not None
    low, high = drawing.strokes
    for (_, y, _, height), (_, above, _, other) in zip(low.bars, high.bars, strict=True):
        assert y + height == pytest.approx(HEIGHT - BOTTOM) and above + other == pytest.approx(y, abs=0.11)
        assert height + other == pytest.approx(HEIGHT - BOTTOM - TOP, abs=0.21), "both stacks reach 40, the top tick"
    assert drawing.header == ["round", "a", "b"] and drawing.rows == [["1", "30", "10"], ["2", "10", "30"]]


def test_what_is_not_finite_or_missing_is_left_out() -> None:
    drawing = draw(chart(line((0, 1.0), (1, math.nan), (2, 3.0)), line((1, math.inf), name="b")))
    assert drawing is not None
    assert [stroke.name for stroke in drawing.strokes] == ["a"]
    assert drawing.rows == [["0", "1"], ["2", "3"]]
    assert draw(chart(line((1, math.nan)))) is None and draw(chart(Series(name="a", points=[]))) is None


@pytest.mark.parametrize("value", [0.0, 1e-9, -3.5, 0.123456, 7e11])
def test_one_value_alone_has_a_place_and_ticks(value: float) -> None:
    drawing = draw(chart(line((3, value))))
    assert drawing is not None
    [(x, y)] = drawing.strokes[0].marks
    assert LEFT <= x <= WIDTH - RIGHT and TOP <= y <= HEIGHT - BOTTOM
    assert len({tick.label for tick in drawing.y_ticks}) == len(drawing.y_ticks) >= 2


def test_many_rounds_keep_their_ticks_apart() -> None:
    drawing = draw(chart(line(*((i, float(i)) for i in range(1, 201)))))
    assert drawing is not None
    assert len(drawing.x_ticks) <= 9 and len(drawing.strokes[0].marks) <= 26 and len(drawing.rows) == 200
