"""``eval`` of a mixture: its unseen tasks, before and after."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tunescope import bank
from tunescope.bank import Record
from tunescope.commands.command import Result
from tunescope.commands.eval_task import keep, sample, trained_length
from tunescope.commands.report import Report
from tunescope.commands.subject import check_answers, customized_of
from tunescope.commands.yaml_file import read_mixture
from tunescope.data.mixture import unseen_rows
from tunescope.data.rows import label_set
from tunescope.errors import TunescopeError
from tunescope.evaluation import default_probes, evaluate_unseen, user_probes

if TYPE_CHECKING:
    from rich.console import Console

    from tunescope.commands.eval import EvalRequest


@dataclass(frozen=True)
class UnseenResult(Result):
    """How unseen tasks are done."""

    def show(self, console: Console) -> None:
        """A line a task, and what was forgotten."""
        from rich.table import Table

        table = Table("task", "metric", "rows", "before", "after", "gain (95% interval)", box=None)
        for name, own in self.values["tasks"].items():
            share = own["metric"] == "accuracy"
            number = (lambda value: f"{value:.1%}") if share else (lambda value: f"{value:.1f}")
            gain = f"{number(own['gain'])} ({number(own['gain_low'])} to {number(own['gain_high'])})"
            table.add_row(name, own["metric"], str(own["rows"]), number(own["before"]), number(own["after"]), gain)
        console.print(table)
        if self.values["forgetting_on"] is not None:
            console.print(f"forgetting: {self.values['forgetting_on']:.3f} nats a token", markup=False)


def eval_unseen(request: EvalRequest, record: Record | None, report: Report) -> Result:
    """Measure an entry, or a base, on the tasks that a mixture holds out."""
    file = Path(request.data)
    mixture = read_mixture(file)
    check_answers(request.entry, record)
    if not mixture.unseen:
        raise TunescopeError(f"{file} holds no task out: name some under unseen, which are then measured here.")
    every = unseen_rows(mixture, report.note)
    labels = {name: label_set(rows) for name, rows in every.items()}
    tasks = {name: sample(rows, labels[name], request.max_rows) for name, rows in every.items()}
    customized = customized_of(request.entry, request.base, request.device, style=request.style)
    against = bank.load(request.against, customized.origin) if request.against is not None else None
    probes = user_probes(request.probe) if request.probe is not None else default_probes(everything=request.all_probes)
    with report.working("measuring") as on_task:
        card = evaluate_unseen(
            customized,
            tasks,
            labels=labels,
            against=against,
            probes=probes,
            max_new_tokens=request.max_new_tokens,
            max_length=trained_length(request, record),
            on_task=on_task,
        )
    keep(request, record, card, report)
    return UnseenResult(card, request.entry)
