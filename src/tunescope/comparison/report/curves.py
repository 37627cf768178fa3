"""The training loss of each method over time."""

from __future__ import annotations

from collections.abc import Sequence

from tunescope.comparison.report.marks import Figure, color, escape, label
from tunescope.comparison.results import MethodResult

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


def _line(row: MethodResult, xs: list[float], ys: list[float], opacity: float, width: float) -> Figure:
    trace = {"type": "scatter", "mode": "lines", "x": xs, "y": ys, "opacity": opacity}
    line = {"color": color(row.method), "width": width}
    return trace | {"line": line, "name": escape(row.name), "hoverinfo": "skip" if opacity < 1 else "name+y"}


def _smoothed(values: list[float], window: int) -> list[float]:
    """Running mean over the last ``window`` values, so that the end of the line shows no future."""
    return [sum(values[max(0, i + 1 - window) : i + 1]) / min(window, i + 1) for i in range(len(values))]
