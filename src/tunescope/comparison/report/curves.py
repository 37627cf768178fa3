"""Curves of each method: the training loss over time, the score over the number of rows."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tunescope.comparison import formatting as form
from tunescope.comparison.report.marks import Figure, color, escape, label, score_title, shown_score
from tunescope.comparison.results import Comparison, MethodResult

_SMOOTH_FROM = 12
"""Points from which a loss curve is smoothed; the raw one stays behind it, faint."""


def curves(rows: Sequence[MethodResult]) -> Figure:
    """A line a row that has at least two losses; long ones are smoothed, with the measured line behind, faint."""
    traces, labels, ends = [], [], []
    for row in rows:
        points = [(seconds, loss) for _, loss, seconds in row.curve if loss is not None]
        if len(points) < 2:
            continue
        xs, losses = [x for x, _ in points], [y for _, y in points]
        drawn = losses
        if len(points) >= _SMOOTH_FROM:
            drawn = _smoothed(losses, window=max(3, len(points) // 10))
            traces.append(_line(row, xs, losses, opacity=0.22, width=1))
        traces.append(_line(row, xs, drawn, opacity=1.0, width=2.4))
        labels.append(label(row, xs[-1], drawn[-1]))
        ends.append(xs[-1])
    if not traces:
        return {}
    return {
        "id": "curves",
        "title": "Training loss",
        "how": "Loss on the training rows while training, smoothed; the faint line is as measured. A low training "
        "loss is not the goal, the score on the test rows is.",
        "height": 400,
        "traces": traces,
        "layout": {
            "xaxis": {"title": {"text": "seconds of training"}, "range": [0, 1.01 * max(ends)]},
            "yaxis": {"title": {"text": "loss (nats per trained token)"}, "rangemode": "tozero"},
        },
        "labels": labels,
        "line_ends": True,
    }


def by_rows(rows: Sequence[MethodResult], comparison: Comparison) -> Figure:
    """A line a method that was trained on several numbers of rows, with its intervals as bars."""
    traces, labels = [], []
    for row in rows:
        if not row.sizes:
            continue
        values = [shown_score(size.score, comparison) or 0.0 for size in row.sizes]
        scale = form.metric_scale(comparison.metric)
        trace = _line(row, [float(size.rows) for size in row.sizes], values, opacity=1.0, width=2.2)
        trace |= {
            "mode": "lines+markers",
            "hoverinfo": "text",
            "hovertext": [
                f"<b>{escape(row.name)}</b><br>{size.rows:,} rows<br>"
                f"{form.score_interval(size.score, size.low, size.high, comparison.metric)}"
                for size in row.sizes
            ],
            "error_y": {
                "type": "data",
                "symmetric": False,
                "array": [(size.high - size.score) * scale for size in row.sizes],
                "arrayminus": [(size.score - size.low) * scale for size in row.sizes],
                "color": color(row.method),
                "thickness": 1,
                "width": 0,
            },
        }
        traces.append(trace)
        labels.append(label(row, math.log10(row.sizes[-1].rows), values[-1]))
    if not traces:
        return {}
    sizes = sorted({size.rows for row in rows for size in row.sizes})
    return {
        "id": "rows",
        "title": "Score against the number of rows",
        "how": "The chosen settings, trained on fewer rows in as many steps; every smaller set lies in the larger ones "
        "and holds the labels in proportion. Bars are 95% intervals over the test rows. Where a line still rises, more "
        "labels would help; where prompting lies above it, training does not pay yet.",
        "wide": True,
        "height": 420,
        "traces": traces,
        "layout": {
            "xaxis": {
                "title": {"text": "rows learned from"},
                "type": "log",
                "tickvals": sizes,
                "ticktext": [f"{size:,}" for size in sizes],
            },
            "yaxis": {"title": {"text": score_title(comparison)}},
        },
        "labels": labels,
        "line_ends": True,
    }


def _line(row: MethodResult, xs: list[float], ys: list[float], opacity: float, width: float) -> Figure:
    trace = {"type": "scatter", "mode": "lines", "x": xs, "y": ys, "opacity": opacity}
    line = {"color": color(row.method), "width": width}
    return trace | {"line": line, "name": escape(row.name), "hoverinfo": "skip" if opacity < 1 else "name+y"}


def _smoothed(values: list[float], window: int) -> list[float]:
    """Running mean over the last ``window`` values, so that the end of the line shows no future."""
    return [sum(values[max(0, i + 1 - window) : i + 1]) / min(window, i + 1) for i in range(len(values))]
