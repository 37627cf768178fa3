"""How sure a measured score is: intervals for one method, intervals for the difference of two.

Everything is plain numpy, deterministic for a given seed, and bounded in memory whatever the number of rows.

Which one applies:

- `wilson_interval`: one plain accuracy, rows right or wrong. Right for few rows and for accuracies near 0 and 1.
- `bootstrap_interval`: one mean of any other per-row score (chrF, margins, a judge's scores).
- `paired_proportions` for accuracies, `paired_difference` for other scores: two methods on the *same* test rows, which
  `common_rows` finds. Much sharper than looking whether two intervals overlap, because rows that are hard for both
  cancel out. Always use them when the per-row scores are there.
- `rank_correlation`: how far two numbers of each row order the rows alike.
- `unpaired_difference`: two scores whose per-row values are not at hand; wider than need be when rows are shared.

`interval_of` and `paired_difference_of` choose by the metric's name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

from tunescope.errors import DataError

PROPORTIONS = frozenset({"accuracy", "exact_match", "preference_accuracy"})
"""Metrics whose per-row scores are 1 or 0, right or wrong, or a mean of such: over trainings, or over a row's pairs."""

SPANS = {"chrf": 100.0}
"""Metrics that lie between 0 and this, whatever the rows."""

_CHUNK = 2_000_000
"""Random indices held at once: 16 MB."""

_FEW_VALUES = 64
"""Up to this many distinct values the resamples are drawn as multinomial counts, whose cost does not grow with n."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A confidence interval, in the unit of the score."""

    low: float
    high: float

    @property
    def width(self) -> float:
        """``high - low``."""
        return self.high - self.low

    @property
    def degenerate(self) -> bool:
        """No width: all rows scored the same, which does not mean that the mean is known exactly."""
        return self.high == self.low


@dataclass(frozen=True, slots=True)
class Difference:
    """Mean of ``a - b`` with its confidence interval, in the unit of the score."""

    mean: float
    low: float
    high: float

    @property
    def resolved(self) -> bool:
        """Whether the data shows a difference: the interval leaves zero out."""
        return self.low > 0 or self.high < 0

    @property
    def half_width(self) -> float:
        """Half of the interval's width: the plus-minus."""
        return (self.high - self.low) / 2

    @property
    def degenerate(self) -> bool:
        """No width: no row differs, which does not mean that there is no difference."""
        return self.high == self.low

    def __neg__(self) -> Difference:
        return Difference(-self.mean, -self.high, -self.low)


def interval_of(values: ArrayLike, metric: str) -> Interval:
    """95% interval of the mean of per-row scores [n]: Wilson's where rows are right or wrong, else the bootstrap's.

    Accuracies that are means over several trainings lie between, too.
    """
    scores = _scores(values)
    if metric in PROPORTIONS and np.isin(scores, [0, 1]).all():
        return wilson_interval(float(scores.sum()), len(scores))
    return bootstrap_interval(scores, span=1.0 if metric in PROPORTIONS else SPANS.get(metric))


def paired_difference_of(a: ArrayLike, b: ArrayLike, metric: str, confidence: float = 0.95) -> Difference:
    """Interval of ``mean(a) - mean(b)``, per-row scores [n] of the same rows in the same order."""
    if metric not in PROPORTIONS:
        return paired_difference(a, b, confidence, span=SPANS.get(metric))
    if np.isin([_scores(a), _scores(b)], [0, 1]).all():
        return paired_proportions(a, b, confidence)
    return paired_difference(a, b, confidence, span=1.0)


def common_rows(a: Sequence[str], b: Sequence[str]) -> tuple[list[int], list[int]]:
    """Where the rows that two measurements share stand in each, given the rows' keys, in the order of ``a``.

    Raises:
        DataError: no row in common, so that nothing can be paired.
    """
    index = {key: i for i, key in enumerate(b)}
    pairs = [(i, index[key]) for i, key in enumerate(a) if key in index]
    if not pairs:
        raise DataError(
            f"The two measurements have no row in common ({len(a)} and {len(b)} rows), so they cannot be compared row "
            "by row: measure both on the same rows."
        )
    return [i for i, _ in pairs], [j for _, j in pairs]


def without_width(intervals: Mapping[str, Interval | Difference]) -> list[str]:
    """Notes on the intervals, by name, that have no width; empty if all have one."""
    names = [name for name, interval in intervals.items() if interval.degenerate]
    if not names:
        return []
    return [
        f"{' and '.join(names)}: the same on every row, so the interval has no width, which is no proof that the value "
        "is exact: measure on more rows."
    ]


def bootstrap_interval(
    values: ArrayLike,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
    *,
    span: float | None = None,
) -> Interval:
    """Percentile bootstrap interval of the mean of per-row scores (Efron and Tibshirani 1993, chapter 13).

    For means of any score over about 20 rows or more; accuracies take `wilson_interval`. Where all rows have the same
    score the bootstrap has nothing to vary and would say, wrongly, that the mean is known exactly. A score with a known
    ``span`` then gets Wilson's interval for the share of the span: the widest that any score in it could need. One
    without keeps an interval of no width, `Interval.degenerate`, which the caller must say.

    Args:
        values: per-row scores, shape [n], any unit.
        confidence: coverage aimed at, between 0 and 1.
        resamples: bootstrap samples drawn.
        seed: of the resampling; the same seed gives the same interval.
        span: the scores lie between 0 and this; None where nothing bounds them.

    Raises:
        ValueError: no values, a value that is not finite or outside the span, or a confidence outside (0, 1).
    """
    scores = _scores(values)
    _check(confidence, resamples)
    if scores[0] == scores.min() == scores.max():
        if span is None:
            return Interval(float(scores[0]), float(scores[0]))
        share = wilson_interval(float(scores[0]) / span * len(scores), len(scores), confidence)
        return Interval(share.low * span, share.high * span)
    low, high = _quantiles(_resampled_means(scores, resamples, seed), confidence)
    return Interval(low, high)


def paired_proportions(a: ArrayLike, b: ArrayLike, confidence: float = 0.95) -> Difference:
    """Difference of two accuracies on the same rows: the adjusted Wald interval of Bonett and Price (2012, eq. 3).

    With ``x`` rows that only ``a`` gets right, ``y`` that only ``b`` gets right, p = (x + 1) / (n + 2) and
    q = (y + 1) / (n + 2), it is p - q ± z √((p + q - (p - q)²) / (n + 2)). The added rows keep a width where no row
    differs, and a handful of rows in one direction from counting as proof: 4 against 0 of 200 show nothing, as in the
    exact sign test (p = 0.125). Recommended by Fagerland, Lydersen and Laake (2014). Widened to contain the observed
    difference, cut to [-1, 1].

    Args:
        a: 1 or 0 for each row, shape [n].
        b: the same of the other method, on the same rows in the same order.
        confidence: coverage aimed at, between 0 and 1.

    Raises:
        ValueError: different numbers of rows, none at all, or a value that is neither 1 nor 0.
    """
    first, second = _paired(a, b)
    if not np.isin([first, second], [0, 1]).all():
        raise ValueError("proportions need a 1 or a 0 for each row")
    _check(confidence, 1)
    n = len(first)
    p = (float((first > second).sum()) + 1) / (n + 2)
    q = (float((first < second).sum()) + 1) / (n + 2)
    reach = _z(confidence) * math.sqrt((p + q - (p - q) ** 2) / (n + 2))
    mean = float((first - second).mean())
    return Difference(mean, max(-1.0, min(p - q - reach, mean)), min(1.0, max(p - q + reach, mean)))


def paired_difference(
    a: ArrayLike,
    b: ArrayLike,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
    *,
    span: float | None = None,
) -> Difference:
    """Paired bootstrap of ``mean(a) - mean(b)`` over the same test rows (Koehn 2004).

    The interval is that of the row-wise differences together with two pseudo-rows, one at plus and one at minus the
    largest difference seen, as in `paired_proportions`. Without them a handful of rows that differ in one direction
    would already count as proof; with many rows they change nothing. Exactly antisymmetric: swapping ``a`` and ``b``
    negates the result. Where no row differs the interval is that of `paired_proportions` times the ``span``; without a
    span it has no width, `Difference.degenerate`, which the caller must say.

    Args:
        a: per-row scores of one method, shape [n].
        b: per-row scores of the other on the same rows in the same order, shape [n].
        confidence: coverage aimed at, between 0 and 1.
        resamples: bootstrap samples drawn.
        seed: of the resampling.
        span: the scores lie between 0 and this; None where nothing bounds them.

    Raises:
        ValueError: different numbers of rows, none at all, or a value that is not finite.
    """
    first, second = _paired(a, b)
    _check(confidence, resamples)
    differences = first - second
    moved = np.flatnonzero(differences)
    if not len(moved):
        reach = paired_proportions(0 * first, 0 * first, confidence).high * (span or 0.0)
        return Difference(0.0, -reach, reach)
    # One orientation for both orders of the arguments, so that they see the same random draws.
    sign = 1.0 if differences[moved[0]] > 0 else -1.0
    largest = np.abs(differences).max()
    smoothed = np.concatenate([sign * differences, [largest, -largest]])
    low, high = _quantiles(_resampled_means(smoothed, resamples, seed), confidence)
    mean = sign * float(differences.mean())
    found = Difference(mean, min(low, mean), max(high, mean))
    return found if sign > 0 else -found


def rank_correlation(
    a: ArrayLike, b: ArrayLike, confidence: float = 0.95, resamples: int = 2_000, seed: int = 0
) -> tuple[float, Interval] | None:
    """Spearman's rank correlation of two numbers, ties sharing their mean rank, with its percentile bootstrap interval
    over rows. None where one of the two is the same everywhere.

    Args:
        a: shape [n], any unit, or [n, k] for k numbers of each row, which are drawn together.
        b: the same of the other number.
        confidence: coverage aimed at, between 0 and 1.
        resamples: bootstrap samples drawn; one in which a number does not vary counts as no correlation.
        seed: of the resampling.

    Raises:
        ValueError: different shapes, none at all, or a value that is not finite.
    """
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    _paired(first.ravel(), second.ravel())
    _check(confidence, resamples)
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    generator = np.random.default_rng(seed)
    drawn = (generator.integers(0, len(first), size=len(first)) for _ in range(resamples))
    found = [_spearman(first[rows].ravel(), second[rows].ravel()) for rows in drawn]
    value = _spearman(first.ravel(), second.ravel())
    return value, Interval(*_quantiles(np.array(found), confidence))


def _spearman(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Of two arrays [n]; 0 where one does not vary."""
    x, y = (rankdata(values) - (len(values) + 1) / 2 for values in (a, b))
    scale = math.sqrt(float(x @ x) * float(y @ y))
    return float(x @ y) / scale if scale else 0.0


def unpaired_difference(a: float, a_interval: Interval, b: float, b_interval: Interval) -> Difference:
    """Difference ``a - b`` of two scores known only with their intervals (Newcombe 1998, method 10: square and add).

    For two proportions or means of which the per-row scores are missing or belong to different rows. On shared rows
    it is conservative: it says "no difference shown" more often than `paired_difference`.
    """
    mean = a - b
    low = mean - math.hypot(a - a_interval.low, b_interval.high - b)
    high = mean + math.hypot(a_interval.high - a, b - b_interval.low)
    return Difference(mean, low, high)


def wilson_interval(correct: float, n: int, confidence: float = 0.95) -> Interval:
    """Wilson score interval of an accuracy of ``correct`` out of ``n`` rows (Wilson 1927).

    For rows that are each right or wrong; of shares (a win rate) it is on the wide side. Stays inside [0, 1] and keeps
    a width at 0 and at n right.

    Raises:
        ValueError: ``n`` is not positive, ``correct`` is outside [0, n], or a confidence outside (0, 1).
    """
    if n <= 0 or not 0 <= correct <= n:
        raise ValueError(f"{correct} correct of {n} rows is not an accuracy")
    _check(confidence, 1)
    z = _z(confidence)
    share = correct / n
    center = (share + z * z / (2 * n)) / (1 + z * z / n)
    spread = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # At the two ends the formula is exactly 0 and 1, but for rounding.
    low = 0.0 if correct == 0 else max(0.0, center - spread)
    high = 1.0 if correct == n else min(1.0, center + spread)
    return Interval(min(low, share), max(high, share))


def rows_needed(difference: Difference, n: int, power: float = 0.8, confidence: float = 0.95) -> float:
    """Roughly how many test rows would show a difference of the observed size, were it the true one.

    The interval shrinks with the square root of the rows; it must leave zero out with probability ``power``, not
    just on average. Infinite when no difference was observed.

    Args:
        difference: as measured on ``n`` rows.
        n: test rows it was measured on.
        power: chance wanted of showing it.
        confidence: of the interval.
    """
    if difference.mean == 0:
        return math.inf
    z = _z(confidence)
    ratio = (z + NormalDist().inv_cdf(power)) / z
    return n * (difference.half_width / abs(difference.mean) * ratio) ** 2


def _scores(values: ArrayLike | Sequence[float]) -> NDArray[np.float64]:
    scores = np.asarray(values, dtype=np.float64)
    if scores.ndim != 1 or not len(scores):
        raise ValueError(f"per-row scores must be a list with at least one row, got shape {list(scores.shape)}")
    if not np.isfinite(scores).all():
        raise ValueError("per-row scores must be finite")
    return scores


def _paired(a: ArrayLike, b: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    first, second = _scores(a), _scores(b)
    if len(first) != len(second):
        raise ValueError(f"paired scores need the same rows: {len(first)} against {len(second)}")
    return first, second


def _z(confidence: float) -> float:
    """How many standard errors the interval reaches to each side: 1.96 at 95%."""
    return NormalDist().inv_cdf((1 + confidence) / 2)


def _check(confidence: float, resamples: int) -> None:
    if not 0 < confidence < 1 or resamples < 1:
        raise ValueError(f"confidence {confidence} must lie between 0 and 1, resamples {resamples} above 0")


def _quantiles(means: NDArray[np.float64], confidence: float) -> tuple[float, float]:
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _resampled_means(values: NDArray[np.float64], resamples: int, seed: int) -> NDArray[np.float64]:
    """Means of ``resamples`` samples with replacement, shape [resamples]."""
    generator = np.random.default_rng(seed)
    n = len(values)
    distinct, counts = np.unique(values, return_counts=True)
    if len(distinct) <= _FEW_VALUES:
        drawn = generator.multinomial(n, counts / n, size=resamples)
        return np.asarray(drawn @ distinct / n, dtype=np.float64)
    means = np.empty(resamples)
    step = max(1, _CHUNK // n)
    for start in range(0, resamples, step):
        stop = min(start + step, resamples)
        means[start:stop] = values[generator.integers(0, n, size=(stop - start, n))].mean(axis=1)
    return means
