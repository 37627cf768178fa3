"""Which method to take: quality against cost, worked out from the results of a comparison alone.

The rule:

1. Compare the method with the highest score to every other by a paired difference over the same test rows. Methods not
   shown to be worse are *comparable*: this data can show no difference.
2. Among the comparable ones take the cheapest, by the first of these costs that differs:

   - nothing trained before something trained;
   - a customization on the shared, frozen base before a whole model of its own (full fine-tuning), which must be stored
     and served apart;
   - less forgetting, in steps of `FORGETTING_STEP`;
   - lower latency of a typical answer, in steps of `LATENCY_STEP`;
   - fewer extra prompt tokens;
   - fewer trainable parameters;
   - the higher score.

   Steps, because a thousandth of a nat or of a millisecond is noise and must not decide.

The differences to the highest score are tested together, at 95% for all of them (Holm 1979): the clearest one at 1 -
0.05/k of k, the next at 1 - 0.05/(k - 1), until one shows nothing. Intervals that are shown are at 95% each. The
highest of many scores is a little flattered by chance, so what validation rows choose is measured anew on test rows.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from tunescope.comparison.results import MethodResult, Probe
from tunescope.evaluation.statistics import (
    Difference,
    Interval,
    common_rows,
    paired_difference_of,
    unpaired_difference,
    wilson_interval,
)

NOTABLE_FORGETTING = 0.1
"""Nats per token of general text; 0.1 is a perplexity about 10% higher."""

FORGETTING_STEP = 0.02
"""Nats per token that count as one step of forgetting."""

LATENCY_STEP = 1.1
"""Latencies within this factor count as the same."""

ANSWER_TOKENS = 20
"""Tokens of the typical answer whose latency is compared: the first, and 19 more."""

_ERROR = 0.05
"""Chance that any method is called worse that is not."""

COSTS = ("trainable_parameters", "seconds", "latency_ms")
"""Costs a Pareto front is given for."""


@dataclass(frozen=True)
class Choice:
    """The method to take, and what it was chosen from.

    Attributes:
        metric: name of the main score.
        scored: all methods with a score, highest score first.
        best: the one with the highest score.
        behind: by name of each other method, the score of ``best`` minus its score.
        comparable: ``best`` and the methods not shown to be worse.
        chosen: the cheapest of ``comparable``.
    """

    metric: str
    scored: list[MethodResult]
    best: MethodResult
    behind: dict[str, Difference]
    comparable: list[MethodResult]
    chosen: MethodResult


def choose(rows: Sequence[MethodResult], metric: str) -> Choice | None:
    """Choose by the rule above; None where no row has a score.

    Args:
        rows: as measured; rows without a score take no part.
        metric: name of the main score; higher is better.
    """
    scored = sorted((row for row in rows if row.score is not None), key=lambda row: (-score_of(row), row.name))
    if not scored:
        return None
    best = scored[0]
    behind = {row.name: difference(best, row, metric) for row in scored[1:]}
    worse = _shown_worse(best, scored[1:], behind, metric)
    comparable = [row for row in scored if row is best or row.name not in worse]
    return Choice(
        metric, scored, best, behind, comparable, min(comparable, key=lambda row: cost_order(row, comparable))
    )


def _shown_worse(
    best: MethodResult, others: Sequence[MethodResult], behind: dict[str, Difference], metric: str
) -> set[str]:
    """Names of the methods that are shown to be worse than the best, by Holm's step-down procedure."""
    shown: set[str] = set()
    by_evidence = sorted(others, key=lambda row: -behind[row.name].mean / max(behind[row.name].half_width, 1e-12))
    for number, row in enumerate(by_evidence):
        confidence = 1 - _ERROR / (len(others) - number)
        if difference(best, row, metric, confidence).low <= 0:
            break
        shown.add(row.name)
    return shown


def pareto(rows: Sequence[MethodResult], cost_key: str) -> list[str]:
    """Names of the rows that no other row beats on score and cost at once, cheapest first.

    A row is beaten by one with a score at least as high and a cost at least as low, one of them strictly better.
    Scores are taken as measured, without their intervals. Rows without the score or the cost take no part.

    Args:
        rows: of a comparison.
        cost_key: a numeric field of `MethodResult`, less is better; or ``"latency_ms"``, the latency of a typical
            answer.
    """
    known = [(cost_of(row, cost_key), row) for row in rows if row.score is not None]
    measured = sorted(
        ((cost, row) for cost, row in known if cost is not None), key=lambda pair: (pair[0], -score_of(pair[1]))
    )
    front: list[tuple[float, MethodResult]] = []
    for cost, row in measured:
        if (
            not front
            or score_of(row) > score_of(front[-1][1])
            or (cost, row.score) == (front[-1][0], front[-1][1].score)
        ):
            front.append((cost, row))
    return [row.name for _, row in front]


def difference(a: MethodResult, b: MethodResult, metric: str, confidence: float = 0.95) -> Difference:
    """Score of ``a`` minus score of ``b`` with its interval, paired over the test rows that both were measured on.

    Where a row was dropped for one of them, the difference is that of the rows they share. Without per-row scores the
    two intervals are combined, which is conservative; without intervals nothing is known about the uncertainty and the
    interval is unbounded.

    Raises:
        DataError: per-row scores of two sets of rows that have none in common.
    """
    mean = score_of(a) - score_of(b)
    if a.row_keys and b.row_keys:
        first, second = common_rows(a.row_keys, b.row_keys)
        values = [a.per_row[i] for i in first], [b.per_row[i] for i in second]
        found = paired_difference_of(*values, metric, confidence)
        if set(a.row_keys) != set(b.row_keys):
            return found
        # A corpus score (chrF) is not the mean of its rows; the spread is theirs, the center the score's.
        return Difference(mean, found.low - found.mean + mean, found.high - found.mean + mean)
    if None not in (a.score_low, a.score_high, b.score_low, b.score_high):
        return unpaired_difference(score_of(a), _interval(a), score_of(b), _interval(b))
    return Difference(mean, -math.inf, math.inf)


def latency_ms(row: MethodResult) -> float | None:
    """Milliseconds for a typical answer of `ANSWER_TOKENS` tokens, time to first token included."""
    if row.ttft_ms is None or row.ms_per_token is None:
        return None
    return row.ttft_ms + (ANSWER_TOKENS - 1) * row.ms_per_token


def notable_forgetting(row: MethodResult) -> bool:
    """Whether the row forgets more than `NOTABLE_FORGETTING`, or loses accuracy on a probe beyond its interval."""
    return (row.forgetting_on or 0.0) > NOTABLE_FORGETTING or any(probe_drop(probe).low > 0 for probe in _probes(row))


def favorite_of(row: MethodResult) -> tuple[str, float, float] | None:
    """A label that is answered far more often than it is right: the label, its share of the answers and of the rows.

    None where no label has more than half of the answers, and twice its share of the rows or nearly all answers.
    """
    answers, truth = Counter[str](), Counter[str]()
    for true, given in row.confusion.items():
        answers.update(given)
        truth[true] += sum(given.values())
    if not answers:
        return None
    label, count = answers.most_common(1)[0]
    total = sum(answers.values())
    share, own = count / total, truth[label] / total
    return (label, share, own) if share > 0.5 and share > min(2 * own, own + 0.25) else None


def probe_drop(probe: Probe) -> Difference:
    """Accuracy lost on a probe, base minus customized, with its 95% interval (positive: worse than the base)."""
    base, now = (
        wilson_interval(min(probe.rows, share * probe.rows), probe.rows)
        for share in (probe.base_accuracy, probe.accuracy)
    )
    return unpaired_difference(probe.base_accuracy, base, probe.accuracy, now)


def cost_order(row: MethodResult, comparable: Sequence[MethodResult]) -> tuple[float | str, ...]:
    """Sort key by the costs of the rule, in its order; smaller is cheaper. What was not measured counts as worst."""
    latencies = [value for value in map(latency_ms, comparable) if value]
    latency = latency_ms(row)
    steps = math.inf
    if latency is not None:
        steps = math.floor(math.log(latency / min(latencies)) / math.log(LATENCY_STEP)) if latency > 0 else 0
    return (
        row.trains,
        row.method == "full",
        round(max(0.0, _forgetting_on(row)) / FORGETTING_STEP) if math.isfinite(_forgetting_on(row)) else math.inf,
        steps,
        row.extra_prompt_tokens or 0,
        math.inf if row.trainable_parameters is None and row.trains else row.trainable_parameters or 0,
        -score_of(row),
        row.name,
    )


def score_of(row: MethodResult) -> float:
    """The row's score; `ValueError` where it has none."""
    if row.score is None:
        raise ValueError(f"row {row.name} has no score")
    return row.score


def _interval(row: MethodResult) -> Interval:
    score = score_of(row)
    return Interval(
        score if row.score_low is None else row.score_low, score if row.score_high is None else row.score_high
    )


def cost_of(row: MethodResult, key: str) -> float | None:
    """A cost by the name of its field, or ``"latency_ms"``; None where it was not measured."""
    if key == "latency_ms":
        return latency_ms(row)
    value = getattr(row, key)
    # Prompting trains nothing and takes no training time, whether or not a zero was written down.
    return 0 if value is None and key in ("trainable_parameters", "seconds") and not row.trains else value


def _forgetting_on(row: MethodResult) -> float:
    if row.forgetting_on is not None:
        return row.forgetting_on
    return math.inf if row.trains else 0.0


def _probes(row: MethodResult) -> list[Probe]:
    return [probe for probe in row.probes.values() if probe.rows > 0]
