"""Whether a customization writes what its attributes ask for: asked values against realized ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunescope import peak_memory
from tunescope.data.attributes import Steering
from tunescope.data.rows import Row
from tunescope.errors import DataError
from tunescope.evaluation.statistics import rank_correlation
from tunescope.inference import Engine, Generated, Request, Sampling
from tunescope.inference.sampling import for_prompt
from tunescope.judging.annotation import Annotator
from tunescope.methods import Customized
from tunescope.objectives.reference import untouched

Card = dict[str, Any]
_OWN, _BASE = "customized", "base"


def evaluate_steering(
    customized: Customized,
    rows: Sequence[Row],
    annotators: Sequence[Annotator],
    sampling: Sampling,
    *,
    on_done: Callable[[int], None] = lambda done: None,
) -> Card:
    """Turn one attribute at a time through its values, the others at their defaults, and measure what is written.

    The untrained base is asked the same by the same lines.

    Args:
        customized: trained on attributes.
        rows: unseen prompts.
        annotators: who says what a text is like, for all of the attributes.
        sampling: of each text; one is sampled for each prompt, attribute and value.
        on_done: callback with the number of texts that are there.

    Returns:
        ``metric, rows, samples``; ``score, score_low, score_high``, of the attribute whose correlation is the least;
        ``attributes``, by name: ``spearman, spearman_low, spearman_high`` (rank correlation of asked and realized
        value, with its 95% bootstrap interval over prompts), ``means`` (realized, by asked value), ``monotone``
        (whether they rise from each value to the next), ``base_spearman, base_means`` (of the untrained base);
        ``leakage``, by the attribute that was turned the correlation with each realized one, where there is one;
        ``notes``.

    Raises:
        DataError: a customization without attributes, one that nobody measures, or a prompt that cannot be answered.
    """
    steering = customized.template.steering
    if steering is None:
        raise DataError("The entry was not trained on attributes (--steer-columns), so nothing steers it.")
    measured = tuple(name for each in annotators for name in each.names)
    if missing := [name for name in steering.names if name not in measured]:
        raise DataError(f"Nobody measures {', '.join(missing)}: name who does with --by {missing[0]}=module:function.")
    peak_memory.reset_peak(customized.base.device)
    levels = range(steering.low, steering.high + 1)
    own = _realized(customized, _OWN, rows, annotators, steering, sampling, on_done)
    before = len(own) * len(rows) * len(levels)
    untrained = untouched(customized)
    untrained.customization.template = untrained.template.model_copy(update={"steering": steering})
    base = _realized(untrained, _BASE, rows, annotators, steering, sampling, lambda done: on_done(before + done))
    asked = np.broadcast_to(np.array(levels), (len(rows), len(levels)))
    found: dict[str, Card] = {}
    leakage: dict[str, dict[str, float | None]] = {}
    for name in steering.names:
        at = measured.index(name)
        found[name] = _of_one(asked, own[name][..., at], base[name][..., at])
        correlations = [rank_correlation(asked, own[name][..., j], resamples=1) for j in range(len(measured))]
        leakage[name] = {
            other: each and each[0]
            for other, each in zip(measured, correlations, strict=True)
            if other in steering.names
        }
    least = min(found.values(), key=lambda card: card["spearman"] or 0.0)
    return {
        "metric": "rank correlation of asked and realized values",
        "rows": len(rows),
        "samples": before,
        **{f"score{end}": least[f"spearman{end}"] for end in ("", "_low", "_high")},
        "attributes": found,
        "leakage": leakage,
        "peak_memory_mb": round(peak_memory.peak_mb(customized.base.device), 1),
        "notes": [],
    }


def _of_one(asked: NDArray[np.int_], own: NDArray[np.float64], base: NDArray[np.float64]) -> Card:
    """Of realized values [prompts, levels] of the attribute that was turned."""
    means, correlation, of_base = own.mean(axis=0), rank_correlation(asked, own), rank_correlation(asked, base)
    value, interval = correlation or (None, None)
    return {
        "spearman": value,
        "spearman_low": interval.low if interval else None,
        "spearman_high": interval.high if interval else None,
        "means": means.tolist(),
        "monotone": bool((np.diff(means) > 0).all()),
        "base_spearman": of_base[0] if of_base else None,
        "base_means": base.mean(axis=0).tolist(),
    }


def _realized(
    customized: Customized,
    name: str,
    rows: Sequence[Row],
    annotators: Sequence[Annotator],
    steering: Steering,
    sampling: Sampling,
    on_done: Callable[[int], None],
) -> dict[str, NDArray[np.float64]]:
    """By the attribute that is turned, [prompts, levels, measured attributes]."""
    engine = Engine(customized.base)
    engine.load(name, customized)
    asked = [
        (attribute, level, row)
        for attribute in steering.names
        for level in range(steering.low, steering.high + 1)
        for row in rows
    ]
    requests = [
        Request(row.messages, name, for_prompt(sampling, row.number), {attribute: level})
        for attribute, level, row in asked
    ]
    done = 0

    def count(_index: int, _answer: Generated) -> None:
        nonlocal done
        done += 1
        on_done(done)

    texts = []
    for (_, _, row), answer in zip(asked, engine.generate(requests, on_done=count), strict=True):
        if answer.error is not None:
            raise DataError(f"The prompt of line {row.number} cannot be answered: {answer.error}")
        texts.append(replace(row, completion=answer.text))
    values = np.concatenate([np.array(each(texts)) for each in annotators], axis=1)
    shape = (len(steering.names), -1, len(rows), values.shape[-1])
    return {n: own.transpose(1, 0, 2) for n, own in zip(steering.names, values.reshape(shape), strict=True)}
