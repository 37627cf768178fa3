"""The comparison as a table for other programs: Markdown for a page, CSV for a spreadsheet."""

from __future__ import annotations

import csv
import io
import json

from tunescope.comparison import formatting as form
from tunescope.comparison.report.tried import taken_words
from tunescope.comparison.results import Comparison, MethodResult

_NUMBERS = (
    "method", "name", "score", "score_low", "score_high", "validation_score", "seeds", "candidates", "settings",
    "accuracy", "macro_f1", "exact_match", "chrf", "nll_per_token", "forgetting_on", "forgetting_off", "kl_task",
    "kl", "trainable_parameters", "steps", "trained_tokens", "seconds", "ttft_ms", "ms_per_token",
    "extra_prompt_tokens", "peak_memory_mb", "artifact_mb", "note",
)  # fmt: skip


def as_csv(comparison: Comparison) -> str:
    """A line a method with every number, unrounded; the settings as JSON."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_NUMBERS)
    for row in comparison.rows:
        values = row.model_dump(mode="json", include=set(_NUMBERS))
        values["settings"] = json.dumps(values["settings"], ensure_ascii=False)
        writer.writerow(["" if values[name] is None else values[name] for name in _NUMBERS])
    return text.getvalue()


def as_markdown(comparison: Comparison) -> str:
    """The table as people read it, the recommended method in bold, and the recommendation."""
    metric = form.metric_name(comparison.metric)
    headings = [
        "method",
        f"{metric} on {comparison.split} rows (95% interval)",
        "settings",
        "forgetting on / off (nats/token)",
        "trained parameters",
        "training",
        "first token",
        "per token",
    ]
    lines = [f"| {' | '.join(headings)} |", f"|{'---|' * 4}{'---:|' * 4}"]
    lines += [f"| {' | '.join(_cells(row, comparison))} |" for row in comparison.rows]
    return "\n".join([*lines, "", *(f"> {line}" for line in comparison.advice.text.splitlines()), ""])


def _cells(row: MethodResult, comparison: Comparison) -> list[str]:
    scale = form.metric_scale(comparison.metric)
    score = form.score(row.score, comparison.metric)
    if row.score_low is not None and row.score_high is not None:
        digits = form.digits(comparison.metric)
        score += f" ({scale * row.score_low:.{digits}f}–{scale * row.score_high:.{digits}f})"
    steps = f", {row.steps:,} steps" if row.steps else ""
    tried = f" (of {row.candidates})" if row.candidates else ""
    name = _escaped(row.name)
    return [
        f"**{name}**" if row.name == comparison.advice.recommended else name,
        score if row.score is not None else _escaped(row.note or ""),
        _escaped(taken_words(row)) + tried,
        f"{form.number(row.forgetting_on, 3)} / {form.number(row.forgetting_off, 3)}",
        form.MISSING if row.trainable_parameters is None else f"{row.trainable_parameters:,}",
        form.duration(row.seconds) + steps,
        _unit(row.ttft_ms),
        _unit(row.ms_per_token),
    ]


def _unit(milliseconds: float | None) -> str:
    return form.MISSING if milliseconds is None else f"{form.milliseconds(milliseconds)} ms"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
