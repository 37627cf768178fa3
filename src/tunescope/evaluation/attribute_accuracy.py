"""How near an attribute model comes to the values that people, or functions, gave completions it has not seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tunescope import peak_memory
from tunescope.data.rows import Row
from tunescope.errors import DataError
from tunescope.evaluation.statistics import bootstrap_interval, paired_difference, rank_correlation
from tunescope.inference.rewards import outputs_that_fit
from tunescope.judging import Measures
from tunescope.methods import Customized
from tunescope.objectives.attributes import HEAD, Attributes

Card = dict[str, Any]


def evaluate_attributes(
    customized: Customized,
    objective: Attributes,
    rows: Sequence[Row],
    *,
    max_length: int | None = None,
    beside: Measures | None = None,
    on_rows: Callable[[int], None] = lambda count: None,
) -> Card:
    """Compare what an attribute model says with the rows' own values.

    Args:
        customized: what to measure.
        objective: what it was trained for.
        rows: unseen ones, with values.
        max_length: most tokens of prompt and completion, as in training; longer prompts are cut the same way.
        beside: judges of some of the attributes, to be measured on the same rows.
        on_rows: callback with how many prompts each pass finished.

    Returns:
        ``metric, rows, score, score_low, score_high`` (mean absolute error over all values, in the attributes' own
        units, with its 95% bootstrap interval over rows; lower is better); ``attributes``, of each by name ``rows``
        (with a value), ``mae, mae_low, mae_high``, ``constant_mae`` (of the best constant for these very rows, their
        median: no constant learned from other rows does better), ``better_than_constant, better_low, better_high``
        (paired difference of the two errors), ``rmse`` (root mean square error, the σ of the likelihood that SteerLM 2
        takes) with ``within_1_rmse, within_2_rmse`` (shares of the errors up to one and two of it; 0.68 and 0.95 of a
        Gaussian's), and ``spearman, spearman_low, spearman_high`` (rank correlation, ties sharing their mean rank; None
        where all values are the same), and where a judge stands beside it ``by`` (its name), ``by_spearman,
        by_spearman_low, by_spearman_high`` and ``by_mae``, its error after the straight line that fits these rows best,
        which is more than a judge of another scale could know; ``trainable_parameters, peak_memory_mb, notes``.

    Raises:
        DataError: no row fits.
    """
    peak_memory.reset_peak(customized.base.device)
    outputs = outputs_that_fit(customized, rows, HEAD, max_length, on_rows)
    fitting = [(row, own) for row, own in zip(rows, outputs, strict=True) if own is not None]
    if not fitting:
        raise DataError("No row fits: every one was dropped. Shorten the completions or raise --max-length.")
    found: dict[str, Card] = {}
    errors: list[list[float]] = [[] for _ in fitting]
    for index, name in enumerate(objective.columns):
        rated = [
            (i, row.attributes[name], own[index]) for i, (row, own) in enumerate(fitting) if name in row.attributes
        ]
        for i, truth, said in rated:
            errors[i].append(abs(truth - said))
        if rated:
            found[name] = _agreement(*np.array([each[1:] for each in rated]).T)
            if beside is not None and name in beside.names:
                judged = np.array(beside([fitting[i][0] for i, _, _ in rated]))[:, beside.names.index(name)]
                found[name] |= {"by": beside.judge_of(name)} | _judged(np.array([each[1] for each in rated]), judged)
    overall = np.array([np.mean(each) for each in errors if each])
    interval = bootstrap_interval(overall)
    dropped = len(rows) - len(fitting)
    return {
        "metric": "mean absolute error",
        "rows": len(overall),
        "score": float(overall.mean()),
        "score_low": interval.low,
        "score_high": interval.high,
        "attributes": found,
        "trainable_parameters": customized.trainable_parameters,
        "peak_memory_mb": round(peak_memory.peak_mb(customized.base.device), 1),
        "notes": [f"{dropped} rows were left out: their completions leave no room for the prompt."] if dropped else [],
    }


def _judged(truth: np.ndarray, judged: np.ndarray) -> Card:
    correlation = rank_correlation(truth, judged)
    if correlation is None:
        return {}
    fitted = np.polyval(np.polyfit(judged, truth, 1), judged)
    low, high = correlation[1].low, correlation[1].high
    within = {"by_spearman": correlation[0], "by_spearman_low": low, "by_spearman_high": high}
    return within | {"by_mae": float(np.abs(truth - fitted).mean())}


def _agreement(truth: np.ndarray, said: np.ndarray) -> Card:
    error, constant = np.abs(truth - said), np.abs(truth - np.median(truth))
    interval, better = bootstrap_interval(error), paired_difference(constant, error)
    found = rank_correlation(truth, said)
    correlation, within = (None, None) if found is None else found
    return {
        "rows": len(truth),
        **{"mae": float(error.mean()), "mae_low": interval.low, "mae_high": interval.high},
        "constant_mae": float(constant.mean()),
        "rmse": (rmse := float(np.sqrt(np.square(error).mean()))),
        **{f"within_{k}_rmse": float((error <= k * rmse).mean()) for k in (1, 2)},
        **{"better_than_constant": better.mean, "better_low": better.low, "better_high": better.high},
        "spearman": correlation,
        "spearman_low": within.low if within else None,
        "spearman_high": within.high if within else None,
    }
