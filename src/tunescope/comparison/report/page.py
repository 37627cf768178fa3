"""The comparison as one HTML file that opens anywhere, offline: table, plots, advice and how it was measured.

The page holds everything it needs (Plotly included, 5 MB) and forbids itself every request by its content security
policy. All texts from data, models and notes are escaped: by the template in the page, as ``\\u003c`` in the embedded
JSON, and by `figures` in the plots.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup

from tunescope.comparison import formatting as form
from tunescope.comparison.report.contested import answered
from tunescope.comparison.report.figures import figures
from tunescope.comparison.report.marks import color
from tunescope.comparison.report.tried import tried
from tunescope.comparison.results import Comparison, MethodResult
from tunescope.comparison.tradeoff import COSTS, difference, notable_forgetting

_COST_NAMES = {
    "trainable_parameters": "trainable parameters",
    "seconds": "training time",
    "latency_ms": "latency",
}


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell of the report's table: what is shown, what is sorted by, and a smaller second line."""

    shown: str
    key: float | str | None
    small: str = ""
    warn: bool = False


def render_report(comparison: Comparison) -> str:
    """The comparison as one self-contained HTML page; rows without a score appear in the table with their note."""
    from plotly.offline import get_plotlyjs  # slow to import, and only needed here

    plots = figures(comparison)
    return _template().render(
        c=comparison,
        css=Markup(_resource("report.css")),
        js=Markup(_resource("report.js")),
        plotly=Markup(get_plotlyjs()),
        data=Markup(_script_json(comparison.model_dump(mode="json"))),
        figures=plots,
        figure_data=Markup(_script_json(plots)),
        columns=_columns(comparison),
        table=[(row, _cells(row, comparison)) for row in comparison.rows],
        tiles=_tiles(comparison),
        fronts=[(_COST_NAMES[key], comparison.advice.fronts[key]) for key in COSTS if key in comparison.advice.fronts],
        measured=_measured(comparison),
        tried=[(row, tried(row, comparison.metric)) for row in comparison.rows if row.search],
        answered=answered(comparison),
        colors={row.name: color(row.method) for row in comparison.rows},
        color=color,
        form=form,
        metric=form.metric_name(comparison.metric),
    )


@cache
def _template() -> jinja2.Template:
    # autoescape for every value: markup enters only as the Markup objects above
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(_resource("report.html"))


def _resource(name: str) -> str:
    return resources.files("tunescope.comparison.report").joinpath(name).read_text(encoding="utf-8")


def _script_json(value: Any) -> str:
    """JSON that can stand inside a script element: no tag and no line separator can end it early."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _columns(comparison: Comparison) -> list[tuple[str, str]]:
    """Headings of the table with what they mean."""
    return [
        ("method", "Click a heading to sort"),
        (form.metric_name(comparison.metric), f"Score on the {comparison.split} rows, with its 95% interval"),
        ("against zero-shot", "Difference of the score to the base model as it is, paired over the rows"),
        ("loss", f"Nats per completion token on the {comparison.split} rows"),
        ("forgetting", "Rise of the loss on general text, nats per token: customization on, and switched off"),
        ("moved", "KL divergence to the base on the task's rows, nats per completion token"),
        ("trained", "Trainable parameters"),
        ("training", "Time in the training loop"),
        ("first token", "Milliseconds to the first token"),
        ("per token", "Milliseconds for each further token"),
        ("prompt", "Tokens put before every user text"),
        ("memory", "Peak memory"),
        ("size", "Size at rest"),
    ]


def _cells(row: MethodResult, comparison: Comparison) -> list[Cell]:
    """The table's cells after the name, in the order of `_columns`."""
    metric = comparison.metric
    interval = ""
    if row.score is not None and row.score_low is not None and row.score_high is not None:
        scale = form.metric_scale(metric)
        digits = form.digits(metric)
        interval = f"{row.score_low * scale:.{digits}f} to {row.score_high * scale:.{digits}f}"
    off = "" if row.forgetting_off is None or not row.trains else f"off {form.number(row.forgetting_off, 3)}"
    prompt = form.MISSING if row.extra_prompt_tokens is None else f"+{row.extra_prompt_tokens}"
    rate = "" if not row.tokens_per_s else f"{row.tokens_per_s:,.0f} tokens/s"
    return [
        Cell(form.score(row.score, metric), row.score, interval),
        _gain(row, comparison),
        Cell(form.number(row.nll_per_token, 3), row.nll_per_token),
        Cell(form.number(row.forgetting_on, 3), row.forgetting_on, off, warn=notable_forgetting(row)),
        Cell(form.number(row.kl_task, 2), row.kl_task, "" if row.kl is None else f"{row.kl:.2f} a sample"),
        Cell(form.count(row.trainable_parameters), row.trainable_parameters),
        Cell(form.duration(row.seconds), row.seconds, rate),
        Cell(_unit(form.milliseconds(row.ttft_ms), "ms"), row.ttft_ms),
        Cell(_unit(form.milliseconds(row.ms_per_token), "ms"), row.ms_per_token),
        Cell(prompt, row.extra_prompt_tokens),
        Cell(form.megabytes(row.peak_memory_mb), row.peak_memory_mb),
        Cell(form.megabytes(row.artifact_mb), row.artifact_mb),
    ]


def _gain(row: MethodResult, comparison: Comparison) -> Cell:
    plain = next((other for other in comparison.rows if other.method == "zero-shot"), None)
    if plain is None or plain.score is None or row.score is None or row is plain:
        return Cell(form.MISSING, None)
    gap = difference(row, plain, comparison.metric)
    shown = form.points(gap.mean, comparison.metric, signed=True)
    low, high = (form.points(bound, comparison.metric, signed=True) for bound in (gap.low, gap.high))
    return Cell(shown, gap.mean, f"{low} to {high}" if abs(gap.low) != float("inf") else "")


def _unit(shown: str, unit: str) -> str:
    return shown if shown == form.MISSING else f"{shown} {unit}"


def _tiles(comparison: Comparison) -> list[tuple[str, str, str]]:
    """Key numbers of the recommended row: value, name, detail."""
    name = comparison.advice.recommended
    if name is None:
        return []
    row = comparison.row(name)
    cells = _cells(row, comparison)
    score, gain, forgetting = cells[0], cells[1], cells[3]
    tiles = [(score.shown, form.metric_name(comparison.metric), f"95% interval {score.small}" if score.small else "")]
    if gain.key is not None:
        tiles.append((f"{gain.shown} points", "against zero-shot", f"95% interval {gain.small}" if gain.small else ""))
    if row.forgetting_on is not None:
        tiles.append(
            (forgetting.shown, "nats per token forgotten", f"switched {forgetting.small}" if forgetting.small else "")
        )
    if row.ttft_ms is not None:
        detail = f"then {form.milliseconds(row.ms_per_token)} ms per token" if row.ms_per_token is not None else ""
        tiles.append((f"{form.milliseconds(row.ttft_ms)} ms", "to the first token", detail))
    trained = form.duration(row.seconds) if row.trains and row.seconds is not None else ""
    if row.trainable_parameters is not None:
        tiles.append((form.count(row.trainable_parameters), "parameters trained", f"in {trained}" if trained else ""))
    return tiles


def _measured(comparison: Comparison) -> list[tuple[str, str]]:
    """What the 'how this was measured' section lists: name and value."""
    base, data, machine = comparison.base, comparison.data, comparison.machine
    budget = "none"
    if comparison.budget_tokens is not None:
        budget = f"{comparison.budget_tokens:,} tokens for each method"
    elif comparison.budget_seconds is not None:
        budget = f"{form.duration(comparison.budget_seconds)} for all methods"
    listed = [
        ("base model", f"{base.name}, {form.count(base.parameters)} parameters"),
        ("base fingerprint", base.fingerprint),
        ("data", f"{data.name}, {data.train_rows:,} rows to train and {data.test_rows:,} to test"),
        ("data SHA-256", data.sha256),
        ("task", data.task + (f", by {data.judge}" if data.judge else "")),
        ("trained for", data.objective),
        ("template", data.template),
    ]
    if data.labels:
        listed.append((f"{len(data.labels)} labels", ", ".join(data.labels)))
    return [
        *listed,
        ("machine", f"{machine.device_name}, {machine.cores} cores, torch {machine.torch}, {machine.dtype}"),
        ("budget", f"{budget}; the comparison took {form.duration(comparison.seconds)}"),
        (
            "time",
            f"first table after {form.duration(comparison.first_table_seconds)}, search "
            f"{form.duration(comparison.search_seconds)}, measuring {form.duration(comparison.evaluation_seconds)}",
        ),
        ("settings chosen on", f"{data.validation_rows:,} rows held out of the rows to train on"),
        ("seed", str(comparison.seed)),
        ("tunescope", comparison.tunescope),
    ]
