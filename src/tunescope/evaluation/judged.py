"""What a customization's own completions are worth to a judge, against those of the base, and how far they moved."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

from tunescope import peak_memory
from tunescope.data.encoding import Encoder
from tunescope.data.rows import Row
from tunescope.errors import DataError
from tunescope.evaluation.statistics import (
    Difference,
    Interval,
    bootstrap_interval,
    paired_difference,
    wilson_interval,
    without_width,
)
from tunescope.inference import Item, score
from tunescope.judging import Judge, Judged, Samples, Unjudged, judged_samples
from tunescope.methods import Customized
from tunescope.objectives.reference import untouched

Card = dict[str, Any]


def evaluate_judged(
    customized: Customized,
    rows: Sequence[Row],
    judge: Judge,
    sampling: Samples,
    *,
    against: Customized | None = None,
    skip_unjudged: int = 10,
    on_prompt: Callable[[str, int], None] = lambda whose, done: None,
) -> Card:
    """Sample completions of unseen prompts from a customization and from its base, judge both, and compare.

    The base answers under the same chat style without the customization's texts and virtual tokens.

    Args:
        customized: what to measure.
        against: what to compare it with in place of the base: what its training started from, for example.
        rows: unseen prompts.
        judge: of the completions.
        sampling: the same for both.
        skip_unjudged: how many samples the judge may fail on.
        on_prompt: callback with ``"customized"`` or ``"base"`` and the number of its prompts that are done.

    Returns:
        ``metric, rows, samples``; ``score, score_low, score_high`` (mean over the prompts of the mean score, with its
        95% bootstrap interval); ``base_score, base_low, base_high``; ``difference, difference_low, difference_high``
        (paired over the prompts); ``win_rate, win_rate_low, win_rate_high`` (probability that a completion of the
        customization has a higher score than one of the base, ties half, from all pairs of a prompt's samples; the
        Wilson interval takes a prompt for one trial, which is on the wide side); ``kl, kl_low, kl_high``
        (KL(π ‖ base) in nats a completion: mean of log π(y|x) - log base(y|x) over the customization's own samples) and
        ``kl_per_token``; ``tokens, base_tokens`` (mean length); ``stop_share, base_stop_share`` (samples that ended of
        themselves); ``distinct_2, base_distinct_2`` (share of different ones among all pairs of neighboring words: low
        where completions repeat themselves or each other; Li et al. 2016); ``peak_memory_mb``, ``notes``. What is named
        ``base`` is of ``against``, where that is given.

    Raises:
        DataError: a prompt that cannot be answered, more failures of the judge than allowed, or no prompt left.
    """
    peak_memory.reset_peak(customized.base.device)
    reference = against or untouched(customized)
    failed = Unjudged(skip_unjudged)
    own, base = (
        sampled(whose, rows, judge, sampling, failed, partial(on_prompt, name))
        for whose, name in ((customized, "customized"), (reference, "base"))
    )
    measured = [i for i in range(len(rows)) if scores_of(own[i]).size and scores_of(base[i]).size]
    if not measured:
        reasons = ["No prompt has samples with a score on both sides, so nothing can be compared.", *failed.notes()]
        raise DataError("\n".join(reasons))
    means = np.array([scores_of(own[i]).mean() for i in measured])
    base_means = np.array([scores_of(base[i]).mean() for i in measured])
    wins = np.array([win_rate(scores_of(own[i]), scores_of(base[i])) for i in measured])
    moved = divergence(customized, reference, rows, own)
    tokens = _mean_tokens(own)
    difference = paired_difference(means, base_means)
    intervals: dict[str, tuple[float, Interval | Difference]] = {
        "score": (means.mean(), bootstrap_interval(means)),
        "base": (base_means.mean(), bootstrap_interval(base_means)),
        "difference": (difference.mean, difference),
        "win_rate": (wins.mean(), wilson_interval(float(wins.sum()), len(wins))),
        "kl": (moved.mean(), bootstrap_interval(moved)),
    }
    card: Card = {"metric": f"judge {judge.name}", "rows": len(measured), "samples": sum(map(len, own))}
    for name, (mean, interval) in intervals.items():
        first = "base_score" if name == "base" else name
        card |= {first: float(mean), f"{name}_low": interval.low, f"{name}_high": interval.high}
    lengths = {"tokens": tokens, "base_tokens": _mean_tokens(base)}
    card |= {
        "kl_per_token": card["kl"] / tokens,
        **lengths,
        "stop_share": _stop_share(own),
        "base_stop_share": _stop_share(base),
        "distinct_2": _distinct_pairs(own),
        "base_distinct_2": _distinct_pairs(base),
        "peak_memory_mb": round(peak_memory.peak_mb(customized.base.device), 1),
    }
    notes = without_width({name: interval for name, (_, interval) in intervals.items()})
    return card | {"notes": [*failed.notes(), *notes, *_tempered(sampling)]}


def win_rate(scores: np.ndarray, others: np.ndarray) -> float:
    """Probability that one of ``scores`` [n] is higher than one of ``others`` [m], ties counting half: the area under
    the curve of Mann and Whitney 1947.
    """
    above, equal = scores[:, None] > others, scores[:, None] == others
    return float((above + equal / 2).mean())


def sampled(
    whose: Customized,
    rows: Sequence[Row],
    judge: Judge,
    sampling: Samples,
    failed: Unjudged,
    on_prompt: Callable[[int], None] = lambda done: None,
) -> list[list[Judged]]:
    """The samples of each prompt with their scores.

    Args:
        whose: completions.
        rows: the prompts.
        judge: of the completions.
        sampling: how many, and how.
        failed: counts the samples that the judge fails on.
        on_prompt: callback with the number of prompts that are done.

    Raises:
        DataError: a prompt that cannot be answered, or more failures of the judge than allowed.
    """
    found: dict[int, list[Judged]] = {}

    def keep(index: int, judged: list[Judged]) -> None:
        failed.add(rows[index].number, judged)
        found[index] = judged
        on_prompt(len(found))

    judged_samples(whose, rows, sampling, judge, keep)
    return [found[index] for index in range(len(rows))]


def scores_of(judged: Sequence[Judged]) -> np.ndarray:
    """The scores of samples that have one, in their order."""
    return np.array([each.score for each in judged if each.score is not None])


def _mean_tokens(samples: Sequence[Sequence[Judged]]) -> float:
    return float(np.mean([len(each.tokens) for judged in samples for each in judged]))


def _stop_share(samples: Sequence[Sequence[Judged]]) -> float:
    return float(np.mean([each.finished for judged in samples for each in judged]))


def _distinct_pairs(samples: Sequence[Sequence[Judged]]) -> float:
    texts = [each.text.split() for judged in samples for each in judged]
    pairs = [pair for words in texts for pair in pairwise(words)]
    return len(set(pairs)) / max(len(pairs), 1)


def divergence(
    customized: Customized, reference: Customized, rows: Sequence[Row], own: Sequence[Sequence[Judged]]
) -> np.ndarray:
    """[prompts] the mean of log π(y|x) - log π_ref(y|x) over a prompt's own samples, in nats a completion: an estimate
    of KL(π ‖ π_ref).
    """
    completions = [[each.tokens for each in judged] for judged in own]
    nats = []
    for whose in (customized, reference):
        encoder = Encoder(whose.base.tokenizer, whose.template, whose.base.context_length)
        items = [Item(encoder.prompt(row.messages, row.tools).ids, c) for row, c in zip(rows, completions, strict=True)]
        nats.append([np.array([found.logprob for found in scores]) for scores in score(whose, items)])
    return np.array([(a - b).mean() for a, b in zip(*nats, strict=True)])


def _tempered(sampling: Samples) -> list[str]:
    """Notes where the samples are not the model's own distribution."""
    plain = Samples(n=sampling.n, max_new_tokens=sampling.max_new_tokens, seed=sampling.seed)
    if sampling == plain:
        return []
    return ["kl is over samples that were not drawn from the model as it is (temperature 1, no cuts): take it roughly."]
