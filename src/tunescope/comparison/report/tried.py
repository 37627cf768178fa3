"""The search of each method: every setting that was tried, against its rate and against how much it learned from."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tunescope.comparison import formatting as form
from tunescope.comparison.candidate import Candidate
from tunescope.comparison.report.marks import Figure, color, escape, label, score_title, shown_score
from tunescope.comparison.results import Comparison, MethodResult


def effort(rows: Sequence[MethodResult], comparison: Comparison) -> Figure:
    """A line a trained candidate: its validation score at each rung; the one that was taken is drawn strong."""
    traces, labels = [], []
    for row in rows:
        for candidate in row.search:
            points = [(rung.trained_tokens, shown_score(rung.score, comparison) or 0.0) for rung in candidate.rungs]
            if candidate.lr is None or not points:
                continue
            taken = _taken(candidate, row)
            traces.append(
                {
                    "type": "scatter",
                    "mode": "lines+markers",
                    "x": [x for x, _ in points],
                    "y": [y for _, y in points],
                    "opacity": 1.0 if taken else 0.35,
                    "line": {"color": color(row.method), "width": 2.4 if taken else 1},
                    "marker": {"color": color(row.method), "size": 7 if taken else 4},
                    "hovertext": [_hover(row, candidate, y, comparison.metric) for _, y in points],
                    "hoverinfo": "text",
                }
            )
            if taken:
                labels.append(label(row, *points[-1]))
    if not traces:
        return {}
    return {
        "id": "effort",
        "title": "Score against what was learned from",
        "how": "Each line is one setting, measured on the validation rows as it went on; most stop at the first point. "
        "The strong line is the setting that was taken. A line that still rises would gain from a larger budget.",
        "height": 400,
        "traces": traces,
        "layout": {
            "xaxis": {"title": {"text": "tokens learned from"}, "rangemode": "tozero"},
            "yaxis": {"title": {"text": f"validation {score_title(comparison)}"}},
        },
        "labels": labels,
    }


def rates(rows: Sequence[MethodResult], comparison: Comparison) -> Figure:
    """Each method's first scores against the learning rate."""
    traces, labels = [], []
    for row in rows:
        points = sorted((each.lr, each) for each in row.search if each.lr is not None and each.rungs)
        if len(points) < 2:
            continue
        scores = [shown_score(candidate.rungs[0].score, comparison) for _, candidate in points]
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "x": [rate for rate, _ in points],
                "y": scores,
                "line": {"color": color(row.method), "width": 1.6, "dash": "dot"},
                "marker": {"color": color(row.method), "size": [11 if _taken(c, row) else 6 for _, c in points]},
                "hovertext": [
                    _hover(row, each, y, comparison.metric) for (_, each), y in zip(points, scores, strict=True)
                ],
                "hoverinfo": "text",
            }
        )
        labels.append(label(row, math.log10(points[-1][0]), scores[-1] or 0.0))
    if not traces:
        return {}
    return {
        "id": "rates",
        "title": "Score against the learning rate",
        "how": "Every setting at its first measurement on the validation rows, after the same number of steps within a "
        "method; the large point is the one that was taken. A best point at the edge asks for a wider search.",
        "height": 400,
        "traces": traces,
        "layout": {
            "xaxis": {
                "title": {"text": "highest learning rate"},
                "type": "log",
                "dtick": 1,
                "exponentformat": "power",
            },
            "yaxis": {"title": {"text": f"validation {score_title(comparison)}"}},
        },
        "labels": labels,
    }


def tried(row: MethodResult, metric: str) -> list[tuple[str, str, str, bool]]:
    """What was tried, in order of its score: settings, how far it came, its score, whether it was taken."""

    def place(candidate: Candidate) -> tuple[float, ...]:
        last = candidate.rungs[-1] if candidate.rungs else None
        return (-candidate.progress, *(last.order if last is not None else (1.0, 0.0)))

    listed = []
    for candidate in sorted(row.search, key=place):
        last = candidate.rungs[-1] if candidate.rungs else None
        if last is None:
            listed.append((candidate.words, "", candidate.error or "not begun", False))
            continue
        came = f"{last.rows} rows" if candidate.steps is None else f"step {last.steps} of {candidate.steps}"
        listed.append((candidate.words, came, form.score(last.score, metric), _taken(candidate, row)))
    return listed


def taken_words(row: MethodResult) -> str:
    """The settings that were taken, in words."""
    return next((candidate.words for candidate in row.search if _taken(candidate, row)), form.MISSING)


def _taken(candidate: Candidate, row: MethodResult) -> bool:
    settings = {name: value for name, value in row.settings.items() if name != "lr"}
    best = candidate.rungs and candidate.rungs[-1].score == row.validation_score
    return bool(best) and (candidate.settings, candidate.lr) == (settings, row.settings.get("lr"))


def _hover(row: MethodResult, candidate: Candidate, score: float | None, metric: str) -> str:
    return f"<b>{escape(row.name)}</b><br>{escape(candidate.words)}<br>{score:.{form.digits(metric)}f}"
