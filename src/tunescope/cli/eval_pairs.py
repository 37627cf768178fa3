"""``eval`` of entries that were trained on pairs: how well they tell better from worse, or what texts are worth."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from tunescope import bank
from tunescope.bank import Record
from tunescope.cli.loading import base_of
from tunescope.cli.output import Output, print_facts
from tunescope.data.reading import Table
from tunescope.data.rows import to_rows
from tunescope.errors import TunescopeError
from tunescope.evaluation.preference_accuracy import evaluate_preferences, plot_reliability
from tunescope.inference import reward_scores
from tunescope.objectives import PreferenceObjective
from tunescope.objectives.registry import OBJECTIVES
from tunescope.storage import check_output
from tunescope.training.run import rows_hash


def preference_objective(record: Record) -> PreferenceObjective | None:
    """What an entry was trained for on pairs; None where it was trained for something else."""
    if record.objective is None:
        return None
    objective = OBJECTIVES.load(record.objective).parse(record.objective_settings)
    return objective if isinstance(objective, PreferenceObjective) else None


def evaluate_pairs(
    entry: Path,
    base: str | None,
    device: str | None,
    table: Table,
    *,
    max_rows: int | None,
    max_length: int | None,
    skip_bad: int,
    plot: Path | None,
    output: Output,
) -> None:
    """Measure an entry on pairs, keep the measurements in its record, and print them."""
    if plot is not None:
        check_output(plot)
    record = bank.read_record(entry)
    objective = preference_objective(record)
    if objective is None:
        raise TunescopeError(
            f"{entry} was trained for {record.objective or 'nothing'}, not on pairs, so it has no rewards to measure "
            f"on {table.path}. Give rows with prompt and completion."
        )
    pairs = objective.rows(table, None, skip_bad, output.note)
    if record.data and rows_hash(pairs) == record.data.sha256:
        output.note("These are the pairs it was trained on: the scores say nothing about new pairs.")
    with output.progress.status("measuring"):
        customized = bank.load(entry, base_of(entry, base, device))
        card = evaluate_preferences(customized, objective, pairs[:max_rows], max_length=max_length)
    card["artifact_mb"] = bank.size_mb(entry)
    bank.write_card(entry, card, record)
    for note in card["notes"]:
        output.note(note)
    if plot is not None:
        plot_reliability(card, plot)
    shown = {name: value for name, value in card.items() if name not in ("reliability", "notes")}
    shown |= {"plot": plot}
    output.result(card, lambda console: print_facts(console, shown))


def score_texts(
    entry: Path,
    base: str | None,
    device: str | None,
    table: Table,
    *,
    max_rows: int | None,
    max_length: int | None,
    skip_bad: int,
    output: Output,
) -> None:
    """What a reward model finds texts worth: a line a row, in order."""
    rows = to_rows(table, skip_bad=skip_bad, on_note=output.note)[:max_rows]
    customized = bank.load(entry, base_of(entry, base, device))
    with output.progress.status("scoring"):
        rewards = reward_scores(
            customized, [row.messages for row in rows], [row.completion or "" for row in rows], max_length=max_length
        )
    values = [
        {"line": row.number, "prompt": row.prompt, "completion": row.completion, "reward": reward}
        for row, reward in zip(rows, rewards, strict=True)
    ]

    def show(_console: Console) -> None:
        for value in values:
            output.write(f"{value['reward']:9.4f}  line {value['line']}: {value['completion']}")

    output.result({"rows": len(values), "mean_reward": sum(rewards) / len(rewards), "texts": values}, show)
