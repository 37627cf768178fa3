"""``eval`` of entries trained on pairs or rankings: how well they tell better from worse, or what texts are worth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tunescope.bank import Record
from tunescope.commands.command import Result
from tunescope.commands.eval_task import keep, trained_length
from tunescope.commands.report import Report
from tunescope.commands.show import visible
from tunescope.commands.subject import customized_of
from tunescope.data.reading import Table
from tunescope.data.rows import to_rows
from tunescope.errors import TunescopeError
from tunescope.evaluation.preference_accuracy import evaluate_preferences, plot_reliability
from tunescope.inference import reward_scores
from tunescope.objectives import PreferenceObjective
from tunescope.objectives.registry import OBJECTIVES
from tunescope.storage import check_output
from tunescope.training.prepared import rows_hash

if TYPE_CHECKING:
    from rich.console import Console

    from tunescope.commands.eval import EvalRequest


def preference_objective(record: Record) -> PreferenceObjective | None:
    """What an entry was trained for on pairs; None where it was trained for something else."""
    if record.objective is None:
        return None
    objective = OBJECTIVES.load(record.objective).parse(record.objective_settings)
    return objective if isinstance(objective, PreferenceObjective) else None


def eval_pairs(request: EvalRequest, record: Record, table: Table, report: Report) -> Result:
    """Measure an entry on pairs or ranked responses."""
    if request.plot is not None:
        check_output(request.plot)
    objective = preference_objective(record)
    if objective is None:
        raise TunescopeError(
            f"{request.entry} was trained for {record.objective or 'nothing'}, not on pairs, so it has no rewards to "
            f"measure on {table.path}. Give rows with prompt and completion."
        )
    pairs = objective.rows(table, None, request.skip_bad - len(table.skipped), report.note)
    if record.data and rows_hash(pairs) == record.data.sha256:
        report.note("These are the rows it was trained on: the scores say nothing about new ones.")
    with report.working("measuring"):
        customized = customized_of(request.entry, request.base, request.device)
        most = trained_length(request, record)
        card = evaluate_preferences(customized, objective, pairs[: request.max_rows], max_length=most)
    keep(request, record, card, report)
    if request.plot is not None:
        plot_reliability(card, request.plot)
    facts = {name: value for name, value in card.items() if name not in ("reliability", "notes")}
    return Result(card, request.entry, facts | {"plot": request.plot})


@dataclass(frozen=True)
class Scored(Result):
    """What a reward model finds texts worth."""

    def show(self, console: Console) -> None:
        """A line a text, in order."""
        for value in self.values["texts"]:
            line = f"{value['reward']:9.4f}  line {value['line']}: {value['completion']}"
            print(visible(line), file=console.file)


def score_texts(request: EvalRequest, record: Record, table: Table, report: Report) -> Scored:
    """What a reward model finds texts worth."""
    left = request.skip_bad - len(table.skipped)
    rows = to_rows(table, skip_bad=left, on_note=report.note)[: request.max_rows]
    customized = customized_of(request.entry, request.base, request.device)
    with report.working("scoring"):
        rewards = reward_scores(
            customized,
            [row.messages for row in rows],
            [row.completion or "" for row in rows],
            max_length=trained_length(request, record),
        )
    texts = [
        {"line": row.number, "prompt": row.prompt, "completion": row.completion, "reward": reward}
        for row, reward in zip(rows, rewards, strict=True)
    ]
    return Scored({"rows": len(texts), "mean_reward": sum(rewards) / len(rewards), "texts": texts})
