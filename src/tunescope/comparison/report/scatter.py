"""Plots of the score against one other number of each method."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tunescope.comparison import formatting as form
from tunescope.comparison.report.marks import (
    DOTTED,
    Figure,
    color,
    hover,
    interval_bars,
    label,
    score_title,
    shown_score,
    symbol,
    vertical_line,
)
from tunescope.comparison.results import Comparison, MethodResult

_Points = Sequence[tuple[MethodResult, float]]


@dataclass(frozen=True)
class Axis:
    """A horizontal axis.

    Attributes:
        position: where on it a number stands.
        layout: range, ticks and lines, as Plotly takes them: ``xaxis`` without its title, and ``shapes``.
    """

    position: Callable[[float], float]
    layout: Figure


@dataclass(frozen=True)
class Plot:
    """The score against a number that each row gives; rows without one are left out.

    Attributes:
        id: of its element in the page.
        title: above it.
        how: how to read it.
        heading: title of the horizontal axis.
        value: a row's number.
        text: the number in words, for the point's hover text.
        axis: makes the horizontal axis from all numbers.
        hollow: a second number of a row that trains, drawn as a hollow point that is linked to the first; None for a
            plot without.
        hollow_text: the second number in words.
        zeros: whether the plot is drawn also where every number is zero.
    """

    id: str
    title: str
    how: str
    heading: str
    value: Callable[[MethodResult], float | None]
    text: Callable[[float], str]
    axis: Callable[[Sequence[float]], Axis]
    hollow: Callable[[MethodResult], float | None] | None = None
    hollow_text: Callable[[float], str] = str
    zeros: bool = False

    def draw(self, rows: Sequence[MethodResult], comparison: Comparison) -> Figure:
        """The plot of these rows, all of which have a score; empty where there is nothing to be seen."""
        first = _known(rows, self.value)
        if not first or not (self.zeros or any(value for _, value in first)):
            return {}
        trained = [row for row, _ in first if row.trains]
        second = [] if self.hollow is None else _known(trained, self.hollow)
        axis = self.axis([value for _, value in (*first, *second)])
        points = [(row, axis.position(value)) for row, value in first]
        traces = [_filled(points, [self.text(value) for _, value in first], comparison)]
        if self.hollow is not None:
            hollow = [(row, axis.position(value)) for row, value in second]
            texts = [self.hollow_text(value) for _, value in second]
            traces = [*_links(hollow, points, comparison), *traces, _hollow(hollow, texts, comparison)]
        return {
            "id": self.id,
            "title": self.title,
            "how": self.how,
            "height": 400,
            "traces": traces,
            "layout": {
                "yaxis": {"title": {"text": score_title(comparison)}},
                **axis.layout,
                "xaxis": {"title": {"text": self.heading}, **axis.layout["xaxis"]},
            },
            "labels": [label(row, x, shown_score(row.score, comparison) or 0.0) for row, x in points],
        }


def linear(values: Sequence[float]) -> Axis:
    """From zero where one number is zero, else close around them, but no closer than a quarter of the largest.

    The limit keeps noise of a percent from looking like a difference.
    """
    low, high = min(values), max(values)
    size = max(high - low, 0.25 * high) or 1.0
    middle = (low + high) / 2
    span = [min(low, middle - size / 2) - 0.1 * size, max(high, middle + size / 2) + 0.14 * size]
    return Axis(lambda value: value, {"xaxis": {"range": span}})


def around_zero(values: Sequence[float], least: float) -> Axis:
    """Linear, with zero on it, and at least ``least`` wide."""
    low, high = min(*values, 0.0), max(*values, 0.0)
    size = max(high - low, least)
    return Axis(lambda value: value, {"xaxis": {"range": [low - 0.09 * size, high + 0.12 * size]}})


def decades(values: Sequence[float]) -> Axis:
    """Logarithmic, with a position of its own for zero, left of the decades and behind a line.

    A logarithm has no zero, so positions are computed here and the axis is linear in them.
    """
    above = [value for value in values if value]
    low, high = math.floor(math.log10(min(above))), math.log10(max(above))
    zero, exponents = low - 1.4, list(range(low, math.floor(high + 0.6) + 1))
    layout: Figure = {
        "xaxis": {
            "tickvals": [zero, *exponents],
            "ticktext": ["0", *(form.count(10.0**exponent).replace(".0", "") for exponent in exponents)],
            "range": [zero - 0.5, high + 0.75],
            "zeroline": False,
        },
        "shapes": [vertical_line(low - 0.4)],
    }
    return Axis(lambda value: math.log10(value) if value else zero, layout)


def _known(rows: Sequence[MethodResult], value: Callable[[MethodResult], float | None]) -> _Points:
    return [(row, found) for row in rows if (found := value(row)) is not None]


def _filled(points: _Points, texts: Sequence[str], comparison: Comparison) -> Figure:
    """A filled point a row, with the interval of its score; the recommended one is larger and ringed."""
    rows, chosen = [row for row, _ in points], comparison.advice.recommended
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [x for _, x in points],
        "y": [shown_score(row.score, comparison) for row in rows],
        "error_y": {**interval_bars(rows, comparison), "color": "@muted", "thickness": 1, "width": 0},
        "marker": {
            "color": [color(row.method) for row in rows],
            "symbol": [symbol(row) for row in rows],
            "opacity": 1,
            "size": [15 if row.name == chosen else 11 for row in rows],
            "line": {"color": "@text", "width": [2 if row.name == chosen else 0 for row in rows]},
        },
        "hovertext": [hover(row, comparison, text) for row, text in zip(rows, texts, strict=True)],
        "hoverinfo": "text",
    }


def _hollow(points: _Points, texts: Sequence[str], comparison: Comparison) -> Figure:
    """A hollow point a row, at the height of its score."""
    rows = [row for row, _ in points]
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [x for _, x in points],
        "y": [shown_score(row.score, comparison) for row in rows],
        "marker": {
            "symbol": [f"{symbol(row)}-open" for row in rows],
            "color": [color(row.method) for row in rows],
            "size": 10,
            "line": {"width": 1.8},
        },
        "hovertext": [hover(row, comparison, text) for row, text in zip(rows, texts, strict=True)],
        "hoverinfo": "text",
    }


def _links(hollow: _Points, points: _Points, comparison: Comparison) -> list[Figure]:
    """A dotted line from each hollow point to its row's filled one; the first row's lies on top."""
    ends = {row.name: x for row, x in points}
    return [
        {
            "type": "scatter",
            "mode": "lines",
            "x": [x, ends[row.name]],
            "y": [shown_score(row.score, comparison)] * 2,
            "line": {**DOTTED, "color": color(row.method)},
            "hoverinfo": "skip",
        }
        for row, x in reversed(hollow)
    ]
