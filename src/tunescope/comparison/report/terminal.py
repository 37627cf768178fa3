"""A comparison as a table in the terminal."""

from __future__ import annotations

from rich import box
from rich.table import Table
from rich.text import Text

from tunescope.comparison import formatting as form
from tunescope.comparison.report.tried import taken_words
from tunescope.comparison.results import Comparison


def render_table(comparison: Comparison, width: int = 100) -> Table:
    """The comparison as a terminal table; the recommended row is marked with ``▶``.

    Args:
        comparison: as measured.
        width: columns of the terminal. Below 100 the last two columns are left out, so that the others stay whole.
    """
    name = form.metric_name(comparison.metric)
    unit = " %" if comparison.metric in form.FRACTIONS else ""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), caption=_caption(comparison), caption_justify="left")
    table.add_column("", width=1)
    table.add_column("method", min_width=9, overflow="fold")
    table.add_column(Text(f"{name}{unit}\n[95% interval]"), justify="right", no_wrap=True)
    headings = ["forget-\nting on", "trained\nparams", "train\ntime", "first\ntoken ms", "ms per\ntoken"]
    if wide := width >= 100:
        headings += ["prompt\ntokens", "peak\nMB"]
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in comparison.rows:
        best = row.name == comparison.advice.recommended
        style = "bold green" if best else "dim" if row.score is None else ""
        cells = [
            "▶" if best else "",
            row.name,
            form.score_interval(row.score, row.score_low, row.score_high, comparison.metric),
            form.number(row.forgetting_on, 3),
            form.count(row.trainable_parameters),
            form.duration(row.seconds),
            form.milliseconds(row.ttft_ms),
            form.milliseconds(row.ms_per_token),
        ]
        if wide:
            cells.append(form.MISSING if row.extra_prompt_tokens is None else f"+{row.extra_prompt_tokens}")
            cells.append(form.MISSING if row.peak_memory_mb is None else f"{row.peak_memory_mb:.0f}")
        # Text, not str: a name with square brackets is no markup.
        table.add_row(*(Text(cell) for cell in cells), style=style)
    return table


def _caption(comparison: Comparison) -> Text:
    lines = []
    if comparison.advice.recommended is not None:
        lines.append("▶ recommended; forgetting in nats per token of general text")
    lines += [f"{row.name}: {taken_words(row)}, of {row.candidates} tried" for row in comparison.rows if row.search]
    lines += [f"{row.name}: {row.note}" for row in comparison.rows if row.note]
    return Text("\n".join(lines))
