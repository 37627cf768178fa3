"""``eval --by``: asked attributes against those of the texts that are written."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunescope import bank
from tunescope.bank import Record
from tunescope.commands.command import Result
from tunescope.commands.eval_task import keep, prompts_of
from tunescope.commands.report import Report
from tunescope.commands.subject import customized_of
from tunescope.data.reading import Table
from tunescope.errors import TunescopeError
from tunescope.evaluation.steering import evaluate_steering
from tunescope.inference import Sampling
from tunescope.judging.annotation import Annotator, AttributeModel, Measures

if TYPE_CHECKING:
    from tunescope.commands.eval import EvalRequest


def eval_steering(request: EvalRequest, record: Record | None, table: Table, report: Report) -> Result:
    """Measure how an entry follows its attributes."""
    if request.entry is None or record is None or record.template.steering is None:
        raise TunescopeError(
            "--by and --annotator measure an entry that was trained with --steer-columns: name one of a bank."
        )
    rows = prompts_of(request, record, table, report)
    customized = customized_of(request.entry, request.base, request.device)
    steering, annotators = record.template.steering, list[Annotator]()
    if request.by:
        annotators.append(Measures(request.by, customized.origin, steering.low, steering.high))
    if request.annotator is not None:
        model = bank.load(request.annotator, customized.origin)
        annotators.append(AttributeModel(model, bank.read_record(request.annotator), str(request.annotator)))
    sampling = Sampling(max_new_tokens=request.max_new_tokens, temperature=1.0)
    texts = 2 * len(rows) * len(steering.names) * (steering.high - steering.low + 1)
    with report.counting("sampling", texts, "texts") as on_done:
        card = evaluate_steering(customized, rows, annotators, sampling, on_done=on_done)
    keep(request, record, card, report)
    facts = {name: value for name, value in card.items() if name not in ("attributes", "leakage", "notes")}
    for name, own in card["attributes"].items():
        means = " ".join(f"{mean:.2f}" for mean in own["means"])
        facts[name] = f"{_number(own['spearman'])} (base {_number(own['base_spearman'])}), means {means}"
    return Result(card, request.entry, facts)


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.2f}"
