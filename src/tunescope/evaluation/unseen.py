"""Tasks that nothing was learned of: how a customization does them, and how it did before."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tunescope import peak_memory
from tunescope.data.rows import Row, label_set
from tunescope.evaluation.forgetting import Probes, measure_forgetting
from tunescope.evaluation.statistics import common_rows, interval_of, paired_difference_of
from tunescope.evaluation.task import TaskScores, measure_task
from tunescope.methods import Customized
from tunescope.objectives.reference import untouched

Card = dict[str, Any]


def evaluate_unseen(
    customized: Customized,
    tasks: Mapping[str, Sequence[Row]],
    *,
    labels: Mapping[str, Sequence[str] | None] | None = None,
    against: Customized | None = None,
    probes: Probes | None = None,
    max_new_tokens: int = 64,
    max_length: int | None = None,
    on_task: Callable[[str], None] = lambda name: None,
) -> Card:
    """Measure tasks zero-shot, under a customization and under what it began as, row by row.

    Args:
        customized: what to measure.
        tasks: rows with completions, by name.
        labels: of each task, to be chosen from by likelihood; None for free texts. By default few different completions
            that recur are labels.
        against: what to compare with; the base by default.
        probes: what forgetting is measured on; None leaves it out.
        max_new_tokens: limit of a generated text.
        max_length: most tokens of prompt and completion, as in training.
        on_task: callback with what is being measured now.

    Returns:
        ``metric, tasks``, of each task by name ``metric`` (accuracy, or chrF of texts), ``rows``, ``before, before_low,
        before_high, after, after_low, after_high, gain, gain_low, gain_high`` (paired over the rows, 95%), and
        ``nll_before, nll_after`` (nats a token of the true completions); ``score, score_low, score_high``, of the task
        that gains least; ``forgetting_on, forgetting_off`` (nats a token); ``peak_memory_mb, notes``.

    Raises:
        DataError: rows that do not fit.
    """
    peak_memory.reset_peak(customized.base.device)
    before = against or untouched(customized)
    found: dict[str, Card] = {}
    notes: list[str] = []
    for name, rows in tasks.items():
        on_task(name)
        choices = label_set(rows) if labels is None else labels[name]
        first, then = (
            measure_task(whose, rows, choices, max_new_tokens=max_new_tokens, max_length=max_length)
            for whose in (before, customized)
        )
        found[name] = _of_one(first, then, "accuracy" if choices else "chrf")
        notes += [f"{name}: {note}" for note in then.notes]
    on_task("forgetting")
    forgetting = measure_forgetting(customized, probes) if probes is not None else None
    least = min(found.values(), key=lambda card: card["gain"])
    return {
        "metric": "gain on unseen tasks",
        "rows": sum(card["rows"] for card in found.values()),
        **{f"score{end}": least[f"gain{end}"] for end in ("", "_low", "_high")},
        "tasks": found,
        "forgetting_on": forgetting and forgetting.forgetting_on,
        "forgetting_off": forgetting and forgetting.forgetting_off,
        "peak_memory_mb": round(peak_memory.peak_mb(customized.base.device), 1),
        "notes": notes,
    }


def _of_one(before: TaskScores, after: TaskScores, metric: str) -> Card:
    then, first = common_rows(after.row_keys, before.row_keys)
    old, new = [before.per_row[i] for i in first], [after.per_row[i] for i in then]
    gain = paired_difference_of(new, old, metric)
    card: Card = {"metric": metric, "rows": len(new)}
    for name, values in (("before", old), ("after", new)):
        interval = interval_of(values, metric)
        card |= {name: sum(values) / len(values), f"{name}_low": interval.low, f"{name}_high": interval.high}
    card |= {"gain": gain.mean, "gain_low": gain.low, "gain_high": gain.high}
    return card | {"nll_before": before.nll_per_token, "nll_after": after.nll_per_token}
