"""``eval --data lm-eval:TASK``: standard benchmarks, before and after."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tunescope import bank
from tunescope.bank import Record
from tunescope.commands.command import Result
from tunescope.commands.eval_task import keep
from tunescope.commands.report import Report
from tunescope.commands.subject import check_answers, customized_of
from tunescope.errors import TunescopeError

if TYPE_CHECKING:
    from rich.console import Console

    from tunescope.commands.eval import EvalRequest

PREFIX = "lm-eval:"


@dataclass(frozen=True)
class HarnessResult(Result):
    """What benchmarks measured."""

    def show(self, console: Console) -> None:
        """A line a task and metric."""
        from rich.table import Table

        table = Table("task", "metric", "questions", "before", "after", "gain (95% interval)", box=None)
        for task, metrics in self.values["tasks"].items():
            for metric, own in metrics.items():
                interval = f" ({own['gain_low']:.3f} to {own['gain_high']:.3f})" if "gain_low" in own else ""
                numbers = (f"{own['before']:.3f}", f"{own['after']:.3f}", f"{own['gain']:+.3f}{interval}")
                table.add_row(task, metric, str(own["rows"]), *numbers)
        console.print(table)


def eval_harness(request: EvalRequest, record: Record | None, report: Report) -> Result:
    """Measure an entry, or a base, on tasks of the lm-evaluation-harness.

    Raises:
        TunescopeError: the harness is not installed, no task is named, or the entry gives no answers.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise TunescopeError(f"{request.data} needs the lm-evaluation-harness: pip install 'tunescope[lm-eval]'.")
    from tunescope.evaluation.harness import evaluate_standard

    tasks = tuple(filter(None, request.data.removeprefix(PREFIX).split(",")))
    if not tasks:
        raise TunescopeError(f"Name tasks behind {PREFIX}, such as {PREFIX}arc_easy,hellaswag.")
    check_answers(request.entry, record)
    customized = customized_of(request.entry, request.base, request.device)
    against = bank.load(request.against, customized.origin) if request.against is not None else None
    with report.working("measuring") as on_task:
        card = evaluate_standard(
            customized,
            tasks,
            against=against,
            limit=request.max_rows,
            chat=request.style == "chat",
            on_task=on_task,
        )
    keep(request, record, card, report)
    return HarnessResult(card, request.entry)
