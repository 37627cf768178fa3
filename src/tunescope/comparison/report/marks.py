"""What all plots share: a method's color and symbol, labels, hover texts, error bars, axes and lines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tunescope.comparison import formatting as form
from tunescope.comparison.results import Comparison, MethodResult

Figure = dict[str, Any]
"""A figure, or a part of one, as it goes into the page as JSON."""

# Okabe and Ito's palette, which is safe for color blindness, shifted where needed to be legible on white and on
# near-black. `symbol` tells the families apart as well.
_COLORS = {
    "lora": "#0e86d4",
    "full": "#d55e00",
    "adapter": "#009e73",
    "ia3": "#b98900",
    "p-tuning": "#c2649a",
    "prompt-tuning": "#8b6fd6",
    "few-shot": "#6b7f93",
    "system": "#8f8478",
    "zero-shot": "#7d7d7d",
}
_OTHER = "#4f9a94"
_LONGEST_LABEL = 24
DOTTED: Figure = {"color": "@muted", "width": 1, "dash": "dot"}
"""A line that is not of one method."""


def color(method: str) -> str:
    """The method's color, the same in all plots."""
    return _COLORS.get(method, _OTHER)


def symbol(row: MethodResult) -> str:
    """Plotly's name of it: a diamond for prompting, a square for full, a circle for what else trains."""
    return "diamond" if not row.trains else "square" if row.method == "full" else "circle"


def escape(text: str) -> str:
    """Text without tags, which Plotly would read."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def shown_score(value: float | None, comparison: Comparison) -> float | None:
    """A score on the scale of the plots: percent for fractions."""
    return None if value is None else value * form.metric_scale(comparison.metric)


def score_title(comparison: Comparison) -> str:
    """Title of a score's axis: the metric and its unit."""
    unit = " (%)" if comparison.metric in form.FRACTIONS else ""
    return f"{escape(form.metric_name(comparison.metric))}{unit}"


def interval_bars(rows: Sequence[MethodResult], comparison: Comparison) -> Figure:
    """Error bars from each row's interval; none where there is no interval."""

    def reach(bound: float | None, row: MethodResult) -> float:
        return 0.0 if bound is None or row.score is None else abs(bound - row.score)

    scale = form.metric_scale(comparison.metric)
    return {
        "type": "data",
        "symmetric": False,
        "array": [reach(row.score_high, row) * scale for row in rows],
        "arrayminus": [reach(row.score_low, row) * scale for row in rows],
    }


def hover(row: MethodResult, comparison: Comparison, more: str = "") -> str:
    """Hover text of a row's point: name, score and interval, and ``more`` on a line of its own."""
    shown = form.score_interval(row.score, row.score_low, row.score_high, comparison.metric)
    return f"<b>{escape(row.name)}</b><br>{score_title(comparison)} {shown}{f'<br>{escape(more)}' if more else ''}"


def _short(name: str) -> str:
    """The name as it fits into a plot; the hover text has it in full."""
    return escape(name if len(name) <= _LONGEST_LABEL else f"{name[: _LONGEST_LABEL - 1]}…")


def names_axis(rows: Sequence[MethodResult]) -> Figure:
    """A category axis with one position a row, whose full names stay distinct where shortened ones would not."""
    return {
        "type": "category",
        "automargin": True,
        "showgrid": False,
        "tickvals": [escape(row.name) for row in rows],
        "ticktext": [_short(row.name) for row in rows],
    }


def label(row: MethodResult, x: float, y: float) -> Figure:
    """The row's name, to be placed beside a point without overlap."""
    return {"x": x, "y": y, "text": _short(row.name), "color": color(row.method)}


def vertical_line(x: float | None) -> Figure:
    """A dotted line over the whole height of the plot."""
    return {"type": "line", "x0": x, "x1": x, "yref": "paper", "y0": 0, "y1": 1, "line": DOTTED}
