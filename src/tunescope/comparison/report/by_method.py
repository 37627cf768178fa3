"""Plots with one line a method: its score with the interval, its accuracy on a set of general knowledge."""

from __future__ import annotations

from collections.abc import Sequence

from tunescope.comparison import formatting as form
from tunescope.comparison.report.marks import (
    Figure,
    color,
    escape,
    hover,
    interval_bars,
    names_axis,
    score_title,
    shown_score,
    symbol,
    vertical_line,
)
from tunescope.comparison.results import Comparison, MethodResult
from tunescope.evaluation.statistics import wilson_interval

# A map of more labels than this cannot be read.
_MOST_LABELS = 40


def scores(rows: Sequence[MethodResult], comparison: Comparison) -> Figure:
    """A bar a row with the interval of its score, the best on top; the score of the base as a line."""
    if not rows:
        return {}
    ordered = sorted(rows, key=lambda row: (row.score or 0.0, row.name))
    names = [escape(row.name) for row in ordered]
    values = [shown_score(row.score, comparison) for row in ordered]
    ends = [shown_score(row.score if row.score_high is None else row.score_high, comparison) or 0.0 for row in ordered]
    starts = [shown_score(row.score if row.score_low is None else row.score_low, comparison) or 0.0 for row in ordered]
    chosen = comparison.advice.recommended
    plain = next((row for row in rows if row.method == "zero-shot"), None)
    return {
        "id": "scores",
        "title": f"{form.metric_name(comparison.metric)} on the {comparison.split} rows".capitalize(),
        "how": "Bars are the scores, thin lines their 95% intervals; the dotted line is the base model as it is. "
        "Overlapping intervals do not settle a comparison of two methods, the paired differences in the tables do.",
        "wide": True,
        "height": 90 + 38 * len(ordered),
        "traces": [
            {
                "type": "bar",
                "orientation": "h",
                "x": values,
                "y": names,
                "marker": {
                    "color": [color(row.method) for row in ordered],
                    "opacity": [1.0 if row.name == chosen else 0.6 for row in ordered],
                },
                "width": 0.62,
                "error_x": {**interval_bars(ordered, comparison), "color": "@text", "thickness": 1.4, "width": 4},
                "hovertext": [hover(row, comparison) for row in ordered],
                "hoverinfo": "text",
            }
        ],
        "values": [
            {"x": end, "y": name, "text": form.score(row.score, comparison.metric), "bold": row.name == chosen}
            for row, name, end in zip(ordered, names, ends, strict=True)
        ],
        "layout": {
            "xaxis": {"title": {"text": score_title(comparison)}, "range": _around_zero([*starts, *ends])},
            "yaxis": names_axis(ordered),
            "shapes": [] if plain is None else [vertical_line(shown_score(plain.score, comparison))],
        },
        "labels": [],
    }


def _around_zero(values: Sequence[float]) -> list[float]:
    """A range that holds zero, where bars begin, and all values: a judge's may be negative."""
    low, high = min(0.0, 1.01 * min(values)), max(0.0, 1.01 * max(values))
    return [low, high] if high > low else [0.0, 1.0]


def confusion(rows: Sequence[MethodResult], comparison: Comparison) -> Figure:
    """What the recommended method answers for each label: a heat map of shares, a row a true label."""
    chosen = next((row for row in rows if row.name == comparison.advice.recommended), None)
    if chosen is None or not chosen.confusion or len(comparison.data.labels) > _MOST_LABELS:
        return {}
    labels = [label for label in comparison.data.labels if label in chosen.confusion]
    answers = [label for label in comparison.data.labels if any(label in given for given in chosen.confusion.values())]
    shares, texts = [], []
    for label in labels[::-1]:
        given = chosen.confusion[label]
        total = sum(given.values())
        shares.append([100 * given.get(answer, 0) / total for answer in answers])
        texts.append([f"{escape(label)}: {given.get(each, 0)} of {total} answered {escape(each)}" for each in answers])
    return {
        "id": "confusion",
        "title": f"What {chosen.name} answers",
        "how": "Each row is a true label, each column an answer; the darker, the larger its share of the row. "
        "What lies off the diagonal are errors.",
        "height": 150 + 34 * len(labels),
        "traces": [
            {
                "type": "heatmap",
                "z": shares,
                "x": [escape(label) for label in answers],
                "y": [escape(label) for label in labels[::-1]],
                "zmin": 0,
                "zmax": 100,
                "colorscale": [[0, "rgba(14,134,212,0)"], [1, "rgba(14,134,212,1)"]],
                "showscale": False,
                "hovertext": texts,
                "hoverinfo": "text",
                "xgap": 2,
                "ygap": 2,
            }
        ],
        "layout": {
            "xaxis": {"title": {"text": "answer"}, "type": "category", "automargin": True},
            "yaxis": {"title": {"text": "label"}, "type": "category", "automargin": True},
        },
        "labels": [],
    }


def probes(rows: Sequence[MethodResult]) -> list[Figure]:
    """A plot for each set of general knowledge that was measured; none for a set without questions."""
    named = enumerate(dict.fromkeys(name for row in rows for name in row.probes))
    drawn = (_probe(f"probe{number}", name, rows) for number, name in named)
    return [figure for figure in drawn if figure]


def _probe(key: str, name: str, rows: Sequence[MethodResult]) -> Figure:
    """Each method's accuracy on one set with its interval, and the base's as a line."""
    probed = [row for row in reversed(rows) if name in row.probes and row.probes[name].rows > 0]
    if not probed:
        return {}
    first = probed[0].probes[name]
    return {
        "id": key,
        "title": f"General knowledge: {name}",
        "how": f"Accuracy on {first.rows} questions that have nothing to do with the task. Hollow and dotted: the "
        "base, before; filled: after, with the 95% interval.",
        "probe": True,
        "height": 110 + 30 * len(probed),
        "traces": _before_and_after(name, probed),
        "layout": {
            "xaxis": {"title": {"text": "accuracy (%)"}},
            "yaxis": names_axis(probed),
            "shapes": [vertical_line(100 * first.base_accuracy)],
        },
        "labels": [],
    }


def _before_and_after(name: str, rows: Sequence[MethodResult]) -> list[Figure]:
    """Two points a row: the base's accuracy, hollow, and the customization's, filled and with its interval."""
    measured = [row.probes[name] for row in rows]
    now = [100 * probe.accuracy for probe in measured]
    # Rounding may carry accuracy · rows out of its bounds.
    right = [min(probe.rows, max(0.0, probe.accuracy * probe.rows)) for probe in measured]
    bounds = [wilson_interval(count, probe.rows) for count, probe in zip(right, measured, strict=True)]
    names = [escape(row.name) for row in rows]
    before: Figure = {
        "type": "scatter",
        "mode": "markers",
        "x": [100 * probe.base_accuracy for probe in measured],
        "y": names,
        "marker": {"symbol": "circle-open", "size": 10, "color": "@muted", "line": {"width": 1.6}},
        "hoverinfo": "skip",
    }
    after: Figure = {
        "type": "scatter",
        "mode": "markers",
        "x": now,
        "y": names,
        "marker": {
            "color": [color(row.method) for row in rows],
            "symbol": [symbol(row) for row in rows],
            "size": 10,
        },
        "error_x": {
            "type": "data",
            "symmetric": False,
            "array": [max(0.0, 100 * bound.high - at) for bound, at in zip(bounds, now, strict=True)],
            "arrayminus": [max(0.0, at - 100 * bound.low) for bound, at in zip(bounds, now, strict=True)],
            "color": "@muted",
            "thickness": 1,
            "width": 0,
        },
        "hovertext": [
            f"<b>{escape(row.name)}</b><br>{probe.base_accuracy:.1%} before, {probe.accuracy:.1%} after"
            f"<br>{probe.rows} questions"
            for row, probe in zip(rows, measured, strict=True)
        ],
        "hoverinfo": "text",
    }
    return [before, after]
