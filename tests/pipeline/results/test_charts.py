"""Charts: bars as high as their counts, lines through their points, and SVG that any text leaves well formed."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from pipeline.results.charts import HEIGHT, WIDTH, bar_chart, line_chart


def parsed(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(f"<page>{svg}</page>")


def the(page: ElementTree.Element, path: str) -> ElementTree.Element:
    element = page.find(path)
    assert element is not None, path
    return element


def points_of(line: ElementTree.Element) -> np.ndarray:
    return np.array([[float(value) for value in pair.split(",")] for pair in line.attrib["points"].split()])


def test_bars_are_as_high_as_their_counts():
    page = parsed(bar_chart([0, 1, 2, 4], [10, 0, 5], label="score", ticks=[(0, "0"), (4, "4")]))
    bars = page.findall(".//rect[@class='bar']")
    heights, widths = ([float(bar.attrib[name]) for bar in bars] for name in ("height", "width"))
    assert heights[0] == pytest.approx(2 * heights[2], abs=0.2) and heights[1] == 0 and 0 < heights[0] < HEIGHT
    assert widths[2] + 1 == pytest.approx(2 * (widths[0] + 1), abs=0.2)  # one pixel apart
    assert [bar.findtext("title") for bar in bars] == ["10", "0", "5"]
    assert the(page, "svg").attrib["aria-label"] == "score: histogram of 15 values"


def test_a_histogram_of_nothing_has_empty_bars():
    page = parsed(bar_chart([0, 1, 2], [0, 0], label="score", ticks=[]))
    assert [bar.attrib["height"] for bar in page.findall(".//rect")] == ["0.0", "0.0"]


def test_lines_pass_through_their_points_and_leave_out_what_is_not_finite():
    nan, inf = float("nan"), float("inf")
    page = parsed(line_chart({"a": ([0, 1, 2, 3], [0, nan, 1, inf]), "none": ([0], [nan])}, label="x", y_range=(0, 1)))
    (line,) = page.findall(".//polyline")
    (left, low), (right, high) = points_of(line)
    assert 0 < left < right < WIDTH and 0 < high < low < HEIGHT  # y grows downwards
    assert [key.text for key in page.findall(".//span")] == ["a"]
    assert line_chart({"none": ([0], [nan])}, label="x") == ""


def test_long_lines_are_thinned_and_a_constant_one_is_drawn():
    x = np.arange(50_000)
    (line,) = parsed(line_chart({"loss": (x, x % 7)}, label="step")).findall(".//polyline")
    points = points_of(line)
    assert len(points) == 1000 and (np.diff(points[:, 0]) >= 0).all()
    (flat,) = parsed(line_chart({"lr": ([5, 5], [0.1, 0.1])}, label="step")).findall(".//polyline")
    assert np.isfinite(points_of(flat)).all()


def test_names_and_labels_are_escaped():
    page = parsed(line_chart({"<b>&": ([0, 1], [0, 1])}, label='"><script>'))
    assert page.find(".//script") is None and the(page, ".//span").text == "<b>&"
    assert the(page, "svg").attrib["aria-label"] == '"><script>: <b>&'
