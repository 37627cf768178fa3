"""The report's plots as plain data: traces, axes, labels. Colors, fonts and label places belong to `report.js`.

Each figure is a dictionary that goes into the page as JSON: ``id``, ``title``, ``how`` (how to read it), ``height`` in
pixels, ``traces`` and ``layout`` as Plotly takes them, and ``labels``, texts to be placed beside points without
overlap. Everything that came from outside is escaped, for Plotly reads tags in its texts.
"""

from __future__ import annotations

from functools import partial

from tunescope.comparison import formatting as form
from tunescope.comparison.report.by_method import confusion, probes, scores
from tunescope.comparison.report.curves import by_rows, curves
from tunescope.comparison.report.marks import Figure
from tunescope.comparison.report.scatter import Plot, around_zero, decades, linear
from tunescope.comparison.report.tried import effort, rates
from tunescope.comparison.results import Comparison

PLOTS = (
    Plot(
        "parameters",
        "Score against trainable parameters",
        "Each step to the right trains ten times as many parameters; methods that train nothing stand at zero, left of "
        "the line. Up and to the left is better. The ringed point is the recommendation, vertical lines are 95% "
        "intervals.",
        "trainable parameters",
        lambda row: row.trainable_parameters if row.trains else 0,
        lambda value: f"{form.count(value)} trained parameters",
        decades,
    ),
    Plot(
        "time",
        "Score against training time",
        "Time in the training loop, as measured; prompting stands at zero. Up and to the left is better.",
        "training time (s)",
        lambda row: row.seconds if row.trains else 0.0,
        lambda value: f"training time {form.duration(value)}",
        linear,
    ),
    Plot(
        "ttft",
        "Score against time to first token",
        "What a user waits before anything appears. Long prompts cost here. Up and to the left is better.",
        "time to first token (ms)",
        lambda row: row.ttft_ms,
        lambda value: f"time to first token {form.milliseconds(value)} ms",
        linear,
    ),
    Plot(
        "speed",
        "Score against time per token",
        "What each further token of the answer takes. Up and to the left is better.",
        "time per token (ms)",
        lambda row: row.ms_per_token,
        lambda value: f"time per token {form.milliseconds(value)} ms",
        linear,
    ),
    Plot(
        "forgetting",
        "Score against forgetting",
        "Rise of the loss on general text. Filled: with the customization on, what its users meet. Hollow: switched "
        "off, zero for every method that leaves the base alone. Up and to the left is better.",
        "forgetting (nats per token)",
        lambda row: row.forgetting_on,
        lambda value: f"forgetting on {form.number(value, 3)} nats per token",
        partial(around_zero, least=0.02),
        hollow=lambda row: row.forgetting_off,
        hollow_text=lambda value: f"forgetting off {form.number(value, 3)} nats per token",
        zeros=True,
    ),
)
"""What the score is drawn against, in the order of the page."""


def figures(comparison: Comparison) -> list[Figure]:
    """All figures that the comparison has numbers for, in the order of the page."""
    rows = [row for row in comparison.rows if row.score is not None]
    drawn = (plot.draw(rows, comparison) for plot in PLOTS)
    search = (by_rows(rows, comparison), effort(rows, comparison), rates(rows, comparison))
    maps = confusion(rows, comparison)
    found = (scores(rows, comparison), *search, *drawn, curves(rows), maps, *probes(rows))
    return [figure for figure in found if figure]
