"""``eval --judge``: an entry's own completions against its base's, as a judge scores them."""

from __future__ import annotations

from pathlib import Path

from tunescope import bank
from tunescope.cli.loading import base_of
from tunescope.cli.output import Output, print_facts
from tunescope.cli.progress import CountProgress
from tunescope.data.reading import Table
from tunescope.data.rows import to_rows
from tunescope.errors import TunescopeError
from tunescope.evaluation import evaluate_judged
from tunescope.judging import Samples, load_judge


def evaluate_by_judge(
    entry: Path | None,
    base: str | None,
    device: str | None,
    table: Table,
    *,
    judge: str,
    n: int,
    template: str | None,
    max_rows: int | None,
    max_new_tokens: int,
    skip_bad: int,
    skip_unjudged: int,
    output: Output,
) -> None:
    """Compare an entry's completions with its base's, keep the measurements in its record, and print them."""
    if entry is None:
        raise TunescopeError("--judge compares an entry with its base: name an entry of a bank.")
    record = bank.read_record(entry)
    pattern = template or record.template.pattern or table.default_template
    rows = to_rows(table, pattern, skip_bad=skip_bad, need_completion=False, on_note=output.note)[:max_rows]
    customized = bank.load(entry, base_of(entry, base, device))
    chosen = load_judge(judge, customized.origin)
    sampling = Samples(n=n, max_new_tokens=max_new_tokens)
    with CountProgress(output.progress, "sampling", 2 * len(rows), "prompts") as progress:
        card = evaluate_judged(
            customized, rows, chosen, sampling, skip_unjudged=skip_unjudged,
            on_prompt=lambda whose, done: progress(done + len(rows) * (whose == "base")),
        )  # fmt: skip
    card["artifact_mb"] = bank.size_mb(entry)
    bank.write_card(entry, card, record)
    for note in card["notes"]:
        output.note(note)
    shown = {name: value for name, value in card.items() if name != "notes"}
    output.result(card, lambda console: print_facts(console, shown))
