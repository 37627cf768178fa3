"""The report's plots as plain data: traces, axes, labels. Colors, fonts and label places belong to `report.js`.

Each figure is a dictionary that goes into the page as JSON: ``id``, ``title``, ``how`` (how to read it), ``height`` in
pixels, ``traces`` and ``layout`` as Plotly takes them, and ``labels``, texts to be placed beside points without
overlap. Everything that came from outside is escaped, for Plotly reads tags in its texts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from tunescope.comparison import formatting as form
from tunescope.comparison.results import Comparison, MethodResult
from tunescope.evaluation.statistics import wilson_interval

Figure = dict[str, Any]

# Okabe and Ito's palette, told apart with every common color blindness, shifted where needed to be read on white and
# on near-black alike. Shape tells the families apart as well: circles train, diamonds prompt, a square is full.
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
_SMOOTH_FROM = 12
"""Points from which a loss curve is smoothed; the raw one stays behind it, faint."""


def figures(comparison: Comparison) -> list[Figure]:
    """All figures that the comparison has numbers for, in the order of the page."""
    rows = [row for row in comparison.rows if row.score is not None]
    made = [
        _scores(rows, comparison),
        _score_against_parameters(rows, comparison),
        _score_against(
            rows,
            comparison,
            "time",
            "Score against training time",
            "Time in the training loop, as measured; prompting stands at zero. Up and to the left is better.",
            ("training time (s)", lambda row: 0.0 if not row.trains else row.seconds, form.duration),
        ),
        _score_against(
            rows,
            comparison,
            "ttft",
            "Score against time to first token",
            "What a user waits before anything appears. Long prompts cost here. Up and to the left is better.",
            ("time to first token (ms)", lambda row: row.ttft_ms, lambda value: f"{form.milliseconds(value)} ms"),
        ),
        _score_against(
            rows,
            comparison,
            "speed",
            "Score against time per token",
            "What each further token of the answer takes. Up and to the left is better.",
            ("time per token (ms)", lambda row: row.ms_per_token, lambda value: f"{form.milliseconds(value)} ms"),
        ),
        _forgetting(rows, comparison),
        _curves(rows),
        *_probes(rows),
    ]
    return [figure for figure in made if figure]


def color(method: str) -> str:
    """The method's color, the same in all plots."""
    return _COLORS.get(method, _OTHER)


def _symbol(row: MethodResult) -> str:
    return "diamond" if not row.trains else "square" if row.method == "full" else "circle"


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _shown(value: float | None, comparison: Comparison) -> float | None:
    return None if value is None else value * form.metric_scale(comparison.metric)


def _score_title(comparison: Comparison) -> str:
    unit = " (%)" if comparison.metric in form.FRACTIONS else ""
    return f"{_escape(form.metric_name(comparison.metric))}{unit}"


def _errors(rows: Sequence[MethodResult], comparison: Comparison) -> Figure:
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


def _hover(row: MethodResult, comparison: Comparison, more: str = "") -> str:
    shown = form.score_interval(row.score, row.score_low, row.score_high, comparison.metric)
    return f"<b>{_escape(row.name)}</b><br>{_score_title(comparison)} {shown}{f'<br>{_escape(more)}' if more else ''}"


def _short(name: str) -> str:
    """The name as it fits into a plot; the hover text has it in full."""
    return _escape(name if len(name) <= _LONGEST_LABEL else f"{name[: _LONGEST_LABEL - 1]}…")


def _names_axis(rows: Sequence[MethodResult]) -> Figure:
    """A category axis with one place a row, whose full names stay distinct where shortened ones would not."""
    return {
        "type": "category",
        "automargin": True,
        "showgrid": False,
        "tickvals": [_escape(row.name) for row in rows],
        "ticktext": [_short(row.name) for row in rows],
    }


def _label(row: MethodResult, x: float, y: float) -> Figure:
    return {"x": x, "y": y, "text": _short(row.name), "color": color(row.method)}


def _scores(rows: Sequence[MethodResult], comparison: Comparison) -> Figure:
    if not rows:
        return {}
    ordered = sorted(rows, key=lambda row: (row.score or 0.0, row.name))
    names = [_escape(row.name) for row in ordered]
    values = [_shown(row.score, comparison) for row in ordered]
    ends = [_shown(row.score if row.score_high is None else row.score_high, comparison) or 0.0 for row in ordered]
    chosen = comparison.advice.recommended
    plain = next((row for row in rows if row.method == "zero-shot"), None)
    shapes = []
    if plain is not None:
        at = _shown(plain.score, comparison)
        line = {"color": "@muted", "width": 1, "dash": "dot"}
        shapes.append({"type": "line", "x0": at, "x1": at, "yref": "paper", "y0": 0, "y1": 1, "line": line})
    return {
        "id": "scores",
        "title": f"{form.metric_name(comparison.metric)} on the test rows".capitalize(),
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
                "error_x": {**_errors(ordered, comparison), "color": "@text", "thickness": 1.4, "width": 4},
                "hovertext": [_hover(row, comparison) for row in ordered],
                "hoverinfo": "text",
            }
        ],
        "values": [
            {
                "x": end,
                "y": name,
                "text": form.score(row.score, comparison.metric),
                "bold": row.name == chosen,
            }
            for row, name, end in zip(ordered, names, ends, strict=True)
        ],
        "layout": {
            "xaxis": {"title": {"text": _score_title(comparison)}, "range": [0, 1.01 * max(ends) or 1]},
            "yaxis": _names_axis(ordered),
            "shapes": shapes,
        },
        "labels": [],
    }


def _points(rows: Sequence[MethodResult], comparison: Comparison, xs: list[float], texts: list[str]) -> Figure:
    """One scatter trace of the rows at ``xs`` (given in axis units) with the score and its interval upward."""
    return {
        "type": "scatter",
        "mode": "markers",
        "x": xs,
        "y": [_shown(row.score, comparison) for row in rows],
        "error_y": {**_errors(rows, comparison), "color": "@muted", "thickness": 1, "width": 0},
        "marker": {
            "color": [color(row.method) for row in rows],
            "symbol": [_symbol(row) for row in rows],
            "opacity": 1,
            "size": [15 if row.name == comparison.advice.recommended else 11 for row in rows],
            "line": {
                "color": "@text",
                "width": [2 if row.name == comparison.advice.recommended else 0 for row in rows],
            },
        },
        "hovertext": [_hover(row, comparison, text) for row, text in zip(rows, texts, strict=True)],
        "hoverinfo": "text",
    }


def _scatter(
    rows: Sequence[MethodResult],
    comparison: Comparison,
    key: str,
    title: str,
    how: str,
    xs: list[float],
    texts: list[str],
) -> Figure:
    return {
        "id": key,
        "title": title,
        "how": how,
        "height": 400,
        "traces": [_points(rows, comparison, xs, texts)],
        "layout": {"yaxis": {"title": {"text": _score_title(comparison)}}},
        "labels": [_label(row, x, _shown(row.score, comparison) or 0.0) for row, x in zip(rows, xs, strict=True)],
    }


def _score_against(
    rows: Sequence[MethodResult],
    comparison: Comparison,
    key: str,
    title: str,
    how: str,
    axis: tuple[str, Callable[[MethodResult], float | None], Callable[[float], str]],
) -> Figure:
    """Score against a cost on a linear axis."""
    heading, cost, shown = axis
    known = [(row, value) for row in rows if (value := cost(row)) is not None]
    if not any(value for _, value in known):
        return {}
    texts = [f"{heading.rsplit(' (', 1)[0]} {shown(value)}" for _, value in known]
    measured, xs = [row for row, _ in known], [value for _, value in known]
    figure = _scatter(measured, comparison, key, title, how, xs, texts)
    figure["layout"]["xaxis"] = {"title": {"text": heading}, "range": _span(xs)}
    return figure


def _span(xs: list[float]) -> list[float]:
    """Axis range around costs: from zero where one is zero, else close, but no closer than a quarter of the largest.

    The limit keeps noise of a percent from looking like a difference.
    """
    low, high = min(xs), max(xs)
    size = max(high - low, 0.25 * high) or 1.0
    middle = (low + high) / 2
    return [min(low, middle - size / 2) - 0.1 * size, max(high, middle + size / 2) + 0.14 * size]


def _score_against_parameters(rows: Sequence[MethodResult], comparison: Comparison) -> Figure:
    """Score against trainable parameters, logarithmic, with a place of its own for zero.

    A logarithm has no zero, so the positions are computed here and the axis is linear in them: decades, a gap marked
    by a line, and zero left of it.
    """
    counted = [
        (row, 0 if not row.trains else row.trainable_parameters)
        for row in rows
        if not row.trains or row.trainable_parameters is not None
    ]
    trained = [count for _, count in counted if count]
    if not trained:
        return {}
    low, high = math.floor(math.log10(min(trained))), math.log10(max(trained))
    zero = low - 1.4
    xs = [math.log10(count) if count else zero for _, count in counted]
    texts = [f"{form.count(count)} trained parameters" for _, count in counted]
    figure = _scatter(
        [row for row, _ in counted],
        comparison,
        "parameters",
        "Score against trainable parameters",
        "Each step to the right trains ten times as many parameters; methods that train nothing stand at zero, left "
        "of the line. Up and to the left is better. The ringed point is the recommendation, vertical lines are 95% "
        "intervals.",
        xs,
        texts,
    )
    decades = list(range(low, math.floor(high + 0.6) + 1))
    figure["layout"]["xaxis"] = {
        "title": {"text": "trainable parameters"},
        "tickvals": [zero, *decades],
        "ticktext": ["0", *(form.count(10.0**decade).replace(".0", "") for decade in decades)],
        "range": [zero - 0.5, high + 0.75],
        "zeroline": False,
    }
    line = {"color": "@muted", "width": 1, "dash": "dot"}
    figure["layout"]["shapes"] = [
        {"type": "line", "x0": low - 0.4, "x1": low - 0.4, "yref": "paper", "y0": 0, "y1": 1, "line": line}
    ]
    return figure


def _forgetting(rows: Sequence[MethodResult], comparison: Comparison) -> Figure:
    known = [row for row in rows if row.forgetting_on is not None]
    if not known:
        return {}
    on = [row.forgetting_on or 0.0 for row in known]
    texts = [f"forgetting on {form.number(row.forgetting_on, 3)} nats per token" for row in known]
    figure = _scatter(
        known,
        comparison,
        "forgetting",
        "Score against forgetting",
        "Rise of the loss on general text. Filled: with the customization on, what its users meet. Hollow: switched "
        "off, zero for every method that leaves the base alone. Up and to the left is better.",
        on,
        texts,
    )
    paired = [row for row in known if row.trains and row.forgetting_off is not None]
    for row in paired:
        y = _shown(row.score, comparison)
        link: Figure = {"type": "scatter", "mode": "lines", "x": [row.forgetting_off, row.forgetting_on], "y": [y, y]}
        link |= {"line": {"color": color(row.method), "width": 1, "dash": "dot"}, "hoverinfo": "skip"}
        figure["traces"].insert(0, link)
    figure["traces"].append(
        {
            "type": "scatter",
            "mode": "markers",
            "x": [row.forgetting_off for row in paired],
            "y": [_shown(row.score, comparison) for row in paired],
            "marker": {
                "symbol": [f"{_symbol(row)}-open" for row in paired],
                "color": [color(row.method) for row in paired],
                "size": 10,
                "line": {"width": 1.8},
            },
            "hovertext": [
                _hover(row, comparison, f"forgetting off {form.number(row.forgetting_off, 3)} nats per token")
                for row in paired
            ],
            "hoverinfo": "text",
        }
    )
    every = [*on, *(row.forgetting_off or 0.0 for row in paired), 0.0]
    span = max(max(every) - min(every), 0.02)
    figure["layout"]["xaxis"] = {
        "title": {"text": "forgetting (nats per token)"},
        "range": [min(every) - 0.09 * span, max(every) + 0.12 * span],
    }
    return figure


def _curves(rows: Sequence[MethodResult]) -> Figure:
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
        labels.append(_label(row, xs[-1], drawn[-1]))
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
    return trace | {"line": line, "name": _escape(row.name), "hoverinfo": "skip" if opacity < 1 else "name+y"}


def _smoothed(values: list[float], window: int) -> list[float]:
    """Running mean over the last ``window`` values, so that the end of the line shows no future."""
    return [sum(values[max(0, i + 1 - window) : i + 1]) / min(window, i + 1) for i in range(len(values))]


def _probes(rows: Sequence[MethodResult]) -> list[Figure]:
    """One figure a probe: each method's accuracy with its interval, and the base's as a line."""
    made: list[Figure] = []
    for number, name in enumerate(dict.fromkeys(name for row in rows for name in row.probes)):
        probed = [row for row in reversed(rows) if name in row.probes and row.probes[name].rows > 0]
        if not probed:
            continue
        probes = [row.probes[name] for row in probed]
        now = [100 * probe.accuracy for probe in probes]
        bounds = [
            wilson_interval(min(probe.rows, max(0.0, probe.accuracy * probe.rows)), probe.rows) for probe in probes
        ]
        base = 100 * probes[0].base_accuracy
        names = [_escape(row.name) for row in probed]
        texts = [
            f"<b>{_escape(row.name)}</b><br>{probe.base_accuracy:.1%} before, {probe.accuracy:.1%} after"
            f"<br>{probe.rows} questions"
            for row, probe in zip(probed, probes, strict=True)
        ]
        before = {
            "type": "scatter",
            "mode": "markers",
            "x": [100 * probe.base_accuracy for probe in probes],
            "y": names,
            "marker": {"symbol": "circle-open", "size": 10, "color": "@muted", "line": {"width": 1.6}},
            "hoverinfo": "skip",
        }
        after = {
            "type": "scatter",
            "mode": "markers",
            "x": now,
            "y": names,
            "marker": {
                "color": [color(row.method) for row in probed],
                "symbol": [_symbol(row) for row in probed],
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
            "hovertext": texts,
            "hoverinfo": "text",
        }
        line = {"color": "@muted", "width": 1, "dash": "dot"}
        made.append(
            {
                "id": f"probe{number}",
                "title": f"General knowledge: {name}",
                "how": f"Accuracy on {probes[0].rows} questions that have nothing to do with the task. Hollow and "
                "dotted: the base, before; filled: after, with the 95% interval.",
                "probe": True,
                "height": 110 + 30 * len(probed),
                "traces": [before, after],
                "layout": {
                    "xaxis": {"title": {"text": "accuracy (%)"}},
                    "yaxis": _names_axis(probed),
                    "shapes": [
                        {"type": "line", "x0": base, "x1": base, "yref": "paper", "y0": 0, "y1": 1, "line": line}
                    ],
                },
                "labels": [],
            }
        )
    return made
