"""How well a customization that was trained on pairs or rankings tells better from worse on rows it has not seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tunescope import peak_memory, storage
from tunescope.data.encoding import Encoder
from tunescope.data.packing import by_length
from tunescope.data.rankings import Preference
from tunescope.errors import DataError
from tunescope.evaluation.statistics import bootstrap_interval, wilson_interval, without_width
from tunescope.inference.scoring import Scorer
from tunescope.methods import Customized
from tunescope.objectives import PreferenceObjective

_BINS = 10

Card = dict[str, Any]


def evaluate_preferences(
    customized: Customized,
    objective: PreferenceObjective,
    pairs: Sequence[Preference],
    *,
    max_length: int | None = None,
    on_pairs: Callable[[int], None] = lambda count: None,
) -> Card:
    """Measure how often the chosen completion has the higher reward, and whether the rewards' distances mean something.

    Args:
        customized: what to measure.
        objective: what it was trained for; it defines the reward.
        pairs: unseen ones, or ranked responses, of which every two of different rank are a pair.
        max_length: most tokens of prompt and completion, as in training; longer prompts are cut the same way.
        on_pairs: callback with the number of rows each pass finished.

    Returns:
        ``metric, rows, pairs, score, score_low, score_high`` (accuracy with its 95% Wilson interval; equal rewards are
        wrong), ``margin, margin_low, margin_high`` (mean difference of the rewards with its 95% bootstrap interval),
        ``reward_chosen, reward_rejected`` (means), ``calibration_error, reliability`` (see ``reliability``; over all
        pairs), ``trainable_parameters, peak_memory_mb, notes``. Each row counts once, with the mean over its pairs, and
        is one trial of the intervals: the pairs of a ranking are not independent.

    Raises:
        DataError: no pair fits.
    """
    base = customized.base
    peak_memory.reset_peak(base.device)
    encoder = Encoder(base.tokenizer, customized.template, base.context_length, max_length, objective.cut)
    examples = encoder.encode_pairs(pairs)
    if not examples:
        raise DataError("No pair fits: every one was dropped. Shorten the completions or raise --max-length.")
    examples = objective.prepare(customized, examples)
    rewards: list[torch.Tensor] = [torch.empty(0)] * len(examples)  # of each row, [2, pairs]
    groups = list(by_length([len(example) for example in examples]))
    scorer = Scorer(customized, max(map(len, groups)))
    for indices in groups:
        batch = objective.collate([examples[i] for i in indices])
        hidden = scorer.hidden(batch.packed)
        with torch.inference_mode():
            found = objective.rewards(customized, batch.to(base.device), hidden).cpu().double()
        for i, own in zip(indices, found[batch.pairs].split(batch.counts, dim=1), strict=True):
            rewards[i] = own
        on_pairs(len(indices))
    margins = torch.cat([own[0] - own[1] for own in rewards]).numpy()
    chosen, rejected = torch.stack([own.mean(dim=1) for own in rewards], dim=1).numpy()
    per_row = chosen - rejected
    right = sum(float((own[0] > own[1]).double().mean()) for own in rewards)
    accuracy, margin = wilson_interval(right, len(rewards)), bootstrap_interval(per_row)
    error, bins = reliability(margins)
    return {
        "metric": "preference accuracy",
        "rows": len(rewards),
        "pairs": len(margins),
        "score": right / len(rewards),
        "score_low": accuracy.low,
        "score_high": accuracy.high,
        "margin": float(per_row.mean()),
        "margin_low": margin.low,
        "margin_high": margin.high,
        "reward_chosen": float(chosen.mean()),
        "reward_rejected": float(rejected.mean()),
        "calibration_error": error,
        "reliability": bins,
        "trainable_parameters": customized.trainable_parameters,
        "peak_memory_mb": round(peak_memory.peak_mb(base.device), 1),
        "notes": [*objective.notes(pairs), *encoder.notes(), *without_width({"margin": margin})],
    }


def reliability(margins: np.ndarray) -> tuple[float, list[dict[str, float]]]:
    """Whether completions preferred with a probability p are preferred in a share p of the pairs.

    A reward model says with confidence σ(|margin|), at least 1/2, which completion is better, and is right where the
    margin is positive. The pairs are sorted into ten bins of confidence; the expected calibration error is the mean
    distance of a bin's accuracy from its mean confidence, each bin counting by its pairs (Guo et al. 2017,
    arXiv:1706.04599, eq. 3).

    Args:
        margins: [pairs] reward of the chosen completion minus that of the rejected one.

    Returns:
        the expected calibration error, and for each bin that has pairs ``low, high, pairs, confidence, accuracy``.
    """
    confidence = 1 / (1 + np.exp(-np.abs(margins)))
    edges = np.linspace(0.5, 1, _BINS + 1)
    bin_of = np.clip(np.digitize(confidence, edges) - 1, 0, _BINS - 1)
    bins, error = [], 0.0
    for i in range(_BINS):
        inside = bin_of == i
        if not inside.any():
            continue
        mean, share = float(confidence[inside].mean()), float((margins[inside] > 0).mean())
        bins.append(
            {
                "low": round(float(edges[i]), 2),
                "high": round(float(edges[i + 1]), 2),
                "pairs": int(inside.sum()),
                "confidence": mean,
                "accuracy": share,
            }
        )
        error += float(inside.mean()) * abs(share - mean)
    return error, bins


def plot_reliability(card: Card, path: Path) -> None:
    """Write the reliability of a card as an HTML page that needs nothing else: accuracy against confidence.

    Raises:
        TunescopeError: a file is there that tunescope did not write.
    """
    import plotly.graph_objects as go

    bins = card["reliability"]
    intervals = [wilson_interval(b["accuracy"] * b["pairs"], b["pairs"]) for b in bins]
    figure = go.Figure()
    figure.add_scatter(x=[0.5, 1], y=[0.5, 1], mode="lines", line={"dash": "dash", "color": "gray"}, name="calibrated")
    figure.add_scatter(
        x=[b["confidence"] for b in bins],
        y=[b["accuracy"] for b in bins],
        error_y={
            "array": [i.high - b["accuracy"] for i, b in zip(intervals, bins, strict=True)],
            "arrayminus": [b["accuracy"] - i.low for i, b in zip(intervals, bins, strict=True)],
        },
        text=[f"n = {b['pairs']}" for b in bins],
        textposition="middle right",
        mode="markers+text",
        name="measured, with 95% intervals",
    )
    figure.update_layout(
        title=f"Calibration: expected error {card['calibration_error']:.3f} over {sum(b['pairs'] for b in bins)} pairs",
        xaxis_title="confidence σ(|difference of the rewards|)",
        yaxis_title="share of pairs in which the preferred completion is the chosen one",
        template="plotly_white",
    )
    storage.write_output(path, figure.to_html(include_plotlyjs=True))
