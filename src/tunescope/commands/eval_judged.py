"""``eval --judge``: an entry's own completions against its base's, as a judge scores them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunescope import bank
from tunescope.commands.command import Result
from tunescope.commands.eval_task import keep, prompts_of
from tunescope.commands.report import Report
from tunescope.commands.subject import customized_of
from tunescope.data.reading import Table
from tunescope.errors import TunescopeError
from tunescope.evaluation import evaluate_judged
from tunescope.judging import Samples, load_judge

if TYPE_CHECKING:
    from tunescope.commands.eval import EvalRequest


def eval_judged(request: EvalRequest, table: Table, report: Report) -> Result:
    """Compare an entry's completions with its base's."""
    if request.entry is None:
        raise TunescopeError("--judge compares an entry with its base: name an entry of a bank.")
    record = bank.read_record(request.entry)
    rows = prompts_of(request, record, table, report)
    customized = customized_of(request.entry, request.base, request.device)
    against = bank.load(request.against, customized.origin) if request.against is not None else None
    judge = load_judge(request.judge, customized.origin)
    sampling = Samples(n=request.n, max_new_tokens=request.max_new_tokens)
    with report.counting("sampling", 2 * len(rows), "prompts") as on_prompt:
        card = evaluate_judged(
            customized, rows, judge, sampling, against=against, skip_unjudged=request.skip_unjudged,
            on_prompt=lambda whose, done: on_prompt(done + len(rows) * (whose == "base")),
        )  # fmt: skip
    keep(request, record, card, report)
    facts = {name: value for name, value in card.items() if name != "notes"}
    gain = {f"judge_gain{end}": card[f"difference{end}"] for end in ("", "_low", "_high")}
    values = card | {"judge_before": card["base_score"], "judge_after": card["score"], **gain}
    return Result(values, request.entry, facts)
