"""Everything that is measured of one customization: its card."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tunescope import peak_memory
from tunescope.data.encoding import Encoder
from tunescope.data.inputs import Source, understand
from tunescope.data.rows import Row
from tunescope.evaluation.distance import task_divergence
from tunescope.evaluation.forgetting import Probes, measure_forgetting
from tunescope.evaluation.latency import measure_latency
from tunescope.evaluation.statistics import Interval, interval_of, wilson_interval
from tunescope.evaluation.task import measure_task
from tunescope.methods import Customized

Card = dict[str, Any]
PER_ROW = ("per_row", "answers", "row_keys")
"""What a card holds of each row: for comparisons, too much for a record."""


def evaluate(
    customized: Customized,
    data: Source | Sequence[Row],
    *,
    labels: Sequence[str] | None = None,
    probes: Probes | None = None,
    generate_rows: int | None = None,
    max_new_tokens: int = 128,
    max_length: int | None = None,
    skip_bad: int = 0,
    on_stage: Callable[[str], None] = lambda stage: None,
) -> Card:
    """Measure a customization on rows it has not seen.

    Args:
        customized: what to measure.
        data: unseen rows with completions: what ``read`` takes (of a built-in set its test part), a table, mappings
            from column to value, or rows. Columns are understood by the customization's own template.
        labels: of a classification task, as ``record.labels`` of what was trained; None measures free texts.
        probes: what forgetting is measured on; None leaves it out.
        generate_rows: rows to generate freely for; all by default.
        max_new_tokens: limit of a generated text.
        max_length: most tokens of prompt and completion, as in training; longer prompts are cut the same way.
        skip_bad: rows that may be bad and left out.
        on_stage: callback with what is being measured now.

    Returns:
        ``nll_per_token, tokens, accuracy, macro_f1, confusion, exact_match, exact_match_low, exact_match_high, chrf,
        score, score_low, score_high, metric, per_row, answers, row_keys, forgetting_on, forgetting_off, kl_task,
        general_loss, general_loss_base, probes, trainable_parameters, ttft_ms, ms_per_token, prompt_tokens,
        extra_prompt_tokens, peak_memory_mb, rows, notes``. ``score`` is the accuracy with its 95% Wilson interval, or
        the mean of the sentences' chrF (0-100) with its 95% bootstrap interval. Exact match and the probes' accuracies
        have Wilson intervals too. ``per_row`` are the scores, and ``answers`` the labels or texts, of the rows that
        ``row_keys`` names. Peak memory is of this evaluation, in 1e6 bytes.

    Raises:
        DataError: rows that do not fit.
    """
    given = understand(data, customized.template.pattern, skip_bad=skip_bad, split="test")
    rows = given.rows
    peak_memory.reset_peak(customized.base.device)
    on_stage("task")
    measured = _task(customized, rows, labels, generate_rows, max_new_tokens, max_length)
    costs = measure_costs(customized, rows, probes=probes, max_length=max_length, on_stage=on_stage)
    return measured | costs | {"notes": [*given.notes, *measured["notes"]]}


def _task(
    customized: Customized,
    rows: Sequence[Row],
    labels: Sequence[str] | None,
    generate_rows: int | None,
    max_new_tokens: int,
    max_length: int | None,
) -> Card:
    task = measure_task(
        customized,
        rows,
        labels,
        generate_rows=generate_rows,
        max_new_tokens=max_new_tokens,
        max_length=max_length,
    )
    metric = "accuracy" if labels else "chrf"
    interval = interval_of(task.per_row, metric)
    matches = _wilson(task.exact_match, task.generated_rows)
    return {
        "metric": metric,
        "rows": len(rows),
        "nll_per_token": task.nll_per_token,
        "tokens": task.tokens,
        "accuracy": task.accuracy,
        "macro_f1": task.macro_f1,
        "confusion": task.confusion,
        "exact_match": task.exact_match,
        "exact_match_low": matches and matches.low,
        "exact_match_high": matches and matches.high,
        "chrf": task.chrf,
        "generated_rows": task.generated_rows,
        "score": task.score,
        "score_low": interval.low,
        "score_high": interval.high,
        "extra_prompt_tokens": round(task.extra_prompt_tokens, 1),
        "per_row": task.per_row,
        "answers": task.answers,
        "row_keys": task.row_keys,
        "notes": task.notes,
    }


def measure_costs(
    customized: Customized,
    rows: Sequence[Row],
    *,
    probes: Probes | None = None,
    max_length: int | None = None,
    on_stage: Callable[[str], None] = lambda stage: None,
) -> Card:
    """What a customization costs in service, and how far it moved from the base.

    Args:
        customized: what to measure.
        rows: unseen ones, with completions.
        probes: what forgetting is measured on; None leaves it out.
        max_length: most tokens of prompt and completion.
        on_stage: callback with what is being measured now.

    Returns:
        ``ttft_ms, ms_per_token, prompt_tokens, trainable_parameters, kl_task, forgetting_on, forgetting_off,
        general_loss, general_loss_base, probes, peak_memory_mb``, as those of ``evaluate``; peak memory is since the
        last ``peak_memory.reset_peak``.
    """
    on_stage("latency")
    encoder = Encoder(customized.base.tokenizer, customized.template, customized.base.context_length, max_length)
    latency = measure_latency(customized, [encoded.prompt for encoded in encoder.encode_all(rows[:101])])
    card: Card = {
        "forgetting_on": None,
        "forgetting_off": None,
        "kl_task": task_divergence(customized, rows, max_length),
        "trainable_parameters": customized.trainable_parameters,
        "ttft_ms": round(latency.ttft_ms, 2),
        "ms_per_token": round(latency.ms_per_token, 2),
        "prompt_tokens": latency.prompt_tokens,
    }
    if probes is not None:
        on_stage("forgetting")
        card |= _forgetting(customized, probes)
    return card | {"peak_memory_mb": round(peak_memory.peak_mb(customized.base.device), 1)}


def _forgetting(customized: Customized, probes: Probes) -> Card:
    found = measure_forgetting(customized, probes)
    return {
        "forgetting_on": found.forgetting_on,
        "forgetting_off": found.forgetting_off,
        "general_loss": found.general.loss,
        "general_loss_base": found.general_base.loss,
        "probes": {
            name: {
                "accuracy": accuracy,
                "accuracy_low": interval.low,
                "accuracy_high": interval.high,
                "base_accuracy": found.general_base.accuracy[name],
                "rows": found.general.questions[name],
            }
            for name, accuracy in found.general.accuracy.items()
            if (interval := _wilson(accuracy, found.general.questions[name]))
        },
    }


def _wilson(accuracy: float | None, rows: int) -> Interval | None:
    return None if accuracy is None else wilson_interval(round(accuracy * rows), rows)
