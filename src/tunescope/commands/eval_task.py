"""``eval`` of a task: classification or texts, forgetting, latency."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tunescope import bank
from tunescope.bank import Record
from tunescope.commands.command import Result
from tunescope.commands.report import Report
from tunescope.commands.subject import customized_of
from tunescope.data.reading import Table
from tunescope.data.rows import Row, label_set, to_rows
from tunescope.data.splitting import split
from tunescope.errors import TunescopeError
from tunescope.evaluation import PER_ROW, default_probes, evaluate, user_probes
from tunescope.training.prepared import rows_hash

if TYPE_CHECKING:
    from tunescope.commands.eval import EvalRequest


def trained_length(request: EvalRequest, record: Record | None) -> int | None:
    """Most tokens of a row: as asked for, or else as the entry was trained."""
    if request.max_length is None and record and record.train_settings:
        return record.train_settings.get("max_length")
    return request.max_length


def prompts_of(request: EvalRequest, record: Record, table: Table, report: Report) -> list[Row]:
    """The rows as prompts to sample from, by the entry's own template; as many as asked for."""
    pattern, left = request.template or record.template.pattern, request.skip_bad - len(table.skipped)
    pattern = pattern or table.default_template
    rows = to_rows(table, pattern, skip_bad=left, need_completion=False, on_note=report.note)
    return rows[: request.max_rows]


def keep(request: EvalRequest, record: Record | None, card: dict[str, Any], report: Report) -> None:
    """Write what was measured into the entry's record, and report what was noted on the way."""
    if request.entry is not None and record is not None:
        card["artifact_mb"] = bank.size_mb(request.entry)
        bank.write_card(request.entry, card, record)
    for note in card["notes"]:
        report.note(note)


def eval_task(request: EvalRequest, record: Record | None, table: Table, report: Report) -> Result:
    """Measure an entry or a base on rows of a task."""
    pattern = _pattern(request, record, table)
    rows = to_rows(table, pattern, skip_bad=request.skip_bad - len(table.skipped), on_note=report.note)
    labels = record.labels if record else label_set(rows)
    if request.generate_rows == 0 and not labels:
        raise TunescopeError("--generate-rows 0 leaves nothing to score: the answers are free texts. Give at least 1.")
    customized = customized_of(request.entry, request.base, request.device, pattern=pattern, style=request.style)
    if record and record.data and rows_hash(rows) == record.data.sha256:
        report.note("These are the rows it was trained on: the scores say nothing about new rows.")
    probes = user_probes(request.probe) if request.probe is not None else default_probes(everything=request.all_probes)
    with report.working("measuring") as on_stage:
        card = evaluate(
            customized,
            sample(rows, labels, request.max_rows),
            labels=labels,
            probes=probes,
            generate_rows=request.generate_rows,
            max_new_tokens=request.max_new_tokens,
            max_length=trained_length(request, record),
            on_stage=on_stage,
        )
    kept = {key: value for key, value in card.items() if key not in PER_ROW}
    keep(request, record, kept, report)
    return Result(kept, request.entry, _facts(kept))


def _pattern(request: EvalRequest, record: Record | None, table: Table) -> str | None:
    pattern = request.template or (record.template.pattern if record else None) or table.default_template
    if record and record.template.pattern and pattern != record.template.pattern:
        raise TunescopeError(
            f"{request.entry} was made with the template {record.template.pattern!r}; measuring it under another would "
            "not measure what it serves. Leave --template out."
        )
    return pattern


def sample(rows: list[Row], labels: tuple[str, ...] | None, most: int | None) -> list[Row]:
    """At most so many rows, stratified where there are labels; the same ones every time."""
    if most is None or most >= len(rows):
        return rows
    names = [row.completion or "" for row in rows] if labels else None
    return [rows[i] for i in split(len(rows), names, most, 0)[1]]


def _facts(card: dict[str, Any]) -> dict[str, Any]:
    shown = {key: value for key, value in card.items() if key not in ("probes", "notes")}
    for name, found in (card.get("probes") or {}).items():
        interval = f"[{found['accuracy_low']:.3f}, {found['accuracy_high']:.3f}]"
        of_base = f"base {found['base_accuracy']:.3f}, {found['rows']} questions"
        shown[name] = f"{found['accuracy']:.3f} {interval} ({of_base})"
    return shown
