"""``eval`` of attribute models: how near they come to rows' own values."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunescope.bank import Record
from tunescope.commands.command import Result
from tunescope.commands.eval_task import keep, trained_length
from tunescope.commands.report import Report
from tunescope.commands.subject import customized_of
from tunescope.data.reading import Table
from tunescope.errors import TunescopeError, UnknownNameError
from tunescope.evaluation.attribute_accuracy import evaluate_attributes
from tunescope.judging import Measures
from tunescope.objectives.attributes import Attributes
from tunescope.training.prepared import rows_hash

if TYPE_CHECKING:
    from tunescope.commands.eval import EvalRequest


def attributes_of(record: Record) -> Attributes:
    """What an attribute model was trained for."""
    return Attributes.parse(record.objective_settings)


def eval_attributes(request: EvalRequest, record: Record, table: Table, report: Report) -> Result:
    """Measure an attribute model on rows that have values."""
    objective = attributes_of(record)
    pattern = request.template or record.template.pattern or table.default_template
    rows = objective.rows(table, pattern, request.skip_bad - len(table.skipped), report.note)
    trained_on = bool(record.data and rows_hash(rows) == record.data.sha256)
    if trained_on:
        report.note("These are the rows it was trained on: the errors say nothing about new ones.")
    customized = customized_of(request.entry, request.base, request.device)
    if request.annotator is not None:
        raise TunescopeError("--annotator measures the steering of an entry; an attribute model is measured itself.")
    beside = Measures(request.by, customized.origin, objective.low, objective.high) if request.by else None
    if beside is not None and (unknown := [name for name in beside.names if name not in objective.columns]):
        raise UnknownNameError("attribute", unknown[0], objective.columns)
    with report.working("measuring"):
        most = trained_length(request, record)
        card = evaluate_attributes(customized, objective, rows[: request.max_rows], max_length=most, beside=beside)
        card["trained_on"] = trained_on
    keep(request, record, card, report)
    facts = {name: value for name, value in card.items() if name not in ("attributes", "notes")}
    for name, own in card["attributes"].items():
        correlation = "none" if own["spearman"] is None else f"{own['spearman']:.2f}"
        facts[name] = f"error {own['mae']:.2f} (constant {own['constant_mae']:.2f}), rank correlation {correlation}"
        if "by_spearman" in own:
            facts[f"{name} by {own['by']}"] = f"error {own['by_mae']:.2f}, rank correlation {own['by_spearman']:.2f}"
    return Result(card, request.entry, facts)
