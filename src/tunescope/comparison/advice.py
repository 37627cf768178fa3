"""Which method to take, and why, worked out from the rows of a comparison alone.

The rule, in order:

1. Set the method with the highest score against every other by a paired difference over the same test rows. Those not
   shown to be worse are *comparable*: there is no difference that this data can show.
2. Among them take the cheapest: nothing trained before something trained; then what shares the frozen base before a
   whole model of its own (full fine-tuning), which must be stored and served apart; then less forgetting (in steps of
   `FORGETTING_STEP`), then lower latency of a typical answer (in steps of `LATENCY_STEP`), then fewer extra prompt
   tokens, fewer trainable parameters, and at last the higher score. Steps, because a thousandth of a nat or of a
   millisecond is noise and must not decide.
3. Say what that gives up and gains, in numbers, and when the test set is too small for the question.

Each difference is tested at 95% on its own. With many methods the highest score is a little flattered by chance, which
only makes the comparable set larger when differences are small.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from tunescope.comparison import formatting as form
from tunescope.comparison.table import Advice, Alternative, Probe, Row
from tunescope.evaluation.statistics import (
    Difference,
    Interval,
    common_rows,
    paired_difference_of,
    rows_needed,
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

FINE_ENOUGH = 5.0
"""Points (of 100) of uncertainty above which the test set is called too small."""

ALTERNATIVES_TOLD = 4
"""How many alternatives the text speaks of; the record holds them all."""

COSTS = ("trainable_parameters", "seconds", "latency_ms")
"""Costs a Pareto front is given for."""


def advise(rows: Sequence[Row], metric: str) -> Advice:
    """Recommend one of the rows.

    Args:
        rows: as measured; rows without a score are named with their note and otherwise left out.
        metric: name of the main score, which higher is better; decides how scores are written.
    """
    scored = sorted((row for row in rows if row.score is not None), key=lambda row: (-_score(row), row.name))
    failed = [f"{row.name} has no score: {row.note}." for row in rows if row.score is None]
    if not scored:
        headline = "No method has a score, so there is nothing to recommend."
        return Advice(recommended=None, headline=headline, reasons=failed, text="\n".join([headline, *failed]))
    best = scored[0]
    behind = {row.name: difference(best, row, metric) for row in scored[1:]}
    comparable = [row for row in scored if row is best or behind[row.name].low <= 0]
    chosen = min(comparable, key=lambda row: _cost_order(row, comparable))
    fronts = {cost: pareto(scored, cost) for cost in COSTS}
    alternatives = [_alternative(row, chosen, row in comparable, metric) for row in scored if row is not chosen]
    reasons = [
        _against_best(chosen, best, comparable, behind, metric),
        _against_zero_shot(chosen, scored, metric),
        _resolution(chosen, best, scored, comparable, behind, metric),
        _forgetting(chosen),
        *(_forgetting(row) for row in comparable if row is not chosen and notable_forgetting(row)),
        _whole_copy(chosen),
        _other_rows(chosen, scored),
        *failed,
    ]
    reasons = [reason for reason in reasons if reason]
    headline = _headline(chosen, metric)
    worth = sorted(
        (other for other in alternatives if _worth_a_thought(other, fronts)), key=lambda other: not other.comparable
    )[:ALTERNATIVES_TOLD]
    return Advice(
        recommended=chosen.name,
        headline=headline,
        reasons=reasons,
        alternatives=alternatives,
        fronts=fronts,
        text="\n".join([headline, *(f"- {line}" for line in [*reasons, *(other.text for other in worth)])]),
    )


def pareto(rows: Sequence[Row], cost_key: str) -> list[str]:
    """Names of the rows that no other row beats on score and cost at once, cheapest first.

    A row is beaten by one with a score at least as high and a cost at least as low, one of them strictly better.
    Scores are taken as measured, without their intervals. Rows without the score or the cost take no part.

    Args:
        rows: of a comparison.
        cost_key: a numeric field of `Row` of which less is better, or ``"latency_ms"`` for the latency of a typical
            answer.
    """
    known = [(_cost(row, cost_key), row) for row in rows if row.score is not None]
    measured = sorted(
        ((cost, row) for cost, row in known if cost is not None), key=lambda pair: (pair[0], -_score(pair[1]))
    )
    front: list[tuple[float, Row]] = []
    for cost, row in measured:
        if not front or _score(row) > _score(front[-1][1]) or (cost, row.score) == (front[-1][0], front[-1][1].score):
            front.append((cost, row))
    return [row.name for _, row in front]


def difference(a: Row, b: Row, metric: str) -> Difference:
    """Score of ``a`` minus score of ``b`` with its 95% interval, paired over the test rows that both were measured on.

    Where a row was dropped for one of them, the difference is that of the rows they share. Without per-row scores the
    two intervals are combined, which is conservative; without intervals nothing is known about the uncertainty and the
    interval is unbounded.

    Raises:
        DataError: per-row scores of two sets of rows that have none in common.
    """
    mean = _score(a) - _score(b)
    if a.row_keys and b.row_keys:
        first, second = common_rows(a.row_keys, b.row_keys)
        found = paired_difference_of([a.per_row[i] for i in first], [b.per_row[i] for i in second], metric)
        if set(a.row_keys) != set(b.row_keys):
            return found
        # A corpus score (chrF) is not the mean of its rows; the spread is theirs, the center the score's.
        return Difference(mean, found.low - found.mean + mean, found.high - found.mean + mean)
    if None not in (a.score_low, a.score_high, b.score_low, b.score_high):
        return unpaired_difference(_score(a), _interval(a), _score(b), _interval(b))
    return Difference(mean, -math.inf, math.inf)


def latency_ms(row: Row) -> float | None:
    """Milliseconds for a typical answer of `ANSWER_TOKENS` tokens, time to first token included."""
    if row.ttft_ms is None or row.ms_per_token is None:
        return None
    return row.ttft_ms + (ANSWER_TOKENS - 1) * row.ms_per_token


def notable_forgetting(row: Row) -> bool:
    """Whether the row forgets more than `NOTABLE_FORGETTING`, or loses accuracy on a probe beyond its interval."""
    return (row.forgetting_on or 0.0) > NOTABLE_FORGETTING or any(probe_drop(probe).low > 0 for probe in _probes(row))


def probe_drop(probe: Probe) -> Difference:
    """Accuracy lost on a probe, base minus customized, with its 95% interval (positive: worse than the base)."""
    base, now = (
        wilson_interval(min(probe.rows, share * probe.rows), probe.rows)
        for share in (probe.base_accuracy, probe.accuracy)
    )
    return unpaired_difference(probe.base_accuracy, base, probe.accuracy, now)


def _cost_order(row: Row, comparable: Sequence[Row]) -> tuple[float | str, ...]:
    """Smaller is cheaper. What was not measured counts as worst."""
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
        -_score(row),
        row.name,
    )


def _headline(chosen: Row, metric: str) -> str:
    interval = ""
    if chosen.score_low is not None and chosen.score_high is not None:
        interval = f" ({form.score(chosen.score_low, metric)} to {form.score(chosen.score_high, metric)})"
    return (
        f"Take {chosen.name}: {form.metric_name(metric)} {form.score(chosen.score, metric)}{interval} on the test rows."
    )


def _against_best(chosen: Row, best: Row, comparable: Sequence[Row], behind: dict[str, Difference], metric: str) -> str:
    """How the choice stands to the highest score, and why it was preferred among the comparable ones."""
    others = [row.name for row in comparable if row is not best]
    if not others:
        if len(behind) == 0:
            return f"{chosen.name} is the only method with a score."
        nearest = min(behind, key=lambda name: behind[name].mean)
        return (
            f"Every other method is shown to be worse; the nearest, {nearest}, by "
            f"{_with_interval(behind[nearest], metric)}."
        )
    if chosen is best:
        unit = "is" if len(others) == 1 else "are"
        return (
            f"{best.name} has the highest score; {form.listing(others)} {unit} not shown to be worse (no difference "
            f"that this data can show), but {best.name} is the cheapest of them: {_why(chosen, comparable)}."
        )
    gap = behind[chosen.name]
    if _identical(best, chosen):
        lead = f"{best.name} scored the same on every test row"
    else:
        lead = f"{best.name} has the highest score, {_with_interval(gap, metric)} above {chosen.name}"
    others = [name for name in others if name != chosen.name]
    also = f" The same holds for {form.listing(others)}." if others else ""
    return (
        f"{lead}: no difference that this data can show.{also} "
        f"{chosen.name} is the cheapest of them: {_why(chosen, comparable)}."
    )


def _why(chosen: Row, comparable: Sequence[Row]) -> str:
    """The first stated cost on which the choice is ahead of the others, in numbers."""
    rivals = [row for row in comparable if row is not chosen]
    mine = _cost_order(chosen, comparable)
    theirs = min(_cost_order(row, comparable) for row in rivals)
    decided = next((place for place, pair in enumerate(zip(mine, theirs, strict=True)) if pair[0] != pair[1]), 6)
    latency = latency_ms(chosen)
    wordings = (
        "it needs no training",
        "it shares the frozen base with other customizations",
        f"it forgets least ({form.number(chosen.forgetting_on, 3)} nats per token)",
        f"it answers fastest ({form.milliseconds(latency)} ms for {ANSWER_TOKENS} tokens)",
        f"it adds the fewest prompt tokens ({chosen.extra_prompt_tokens or 0})",
        f"it trains the fewest parameters ({form.count(chosen.trainable_parameters)})",
        "their costs are about the same and its score is the highest",
    )
    return wordings[min(decided, 6)]


def _against_zero_shot(chosen: Row, scored: Sequence[Row], metric: str) -> str:
    plain = next((row for row in scored if row.method == "zero-shot"), None)
    if plain is None or len(scored) == 1:
        return ""
    if not any(difference(row, plain, metric).low > 0 for row in scored if row is not plain):
        return f"Nothing here is shown to beat {plain.name}, the base model as it is."
    gain = difference(chosen, plain, metric)
    return f"Against {plain.name}, the base model as it is, {chosen.name} gains {_with_interval(gain, metric)}."


def _resolution(
    chosen: Row,
    best: Row,
    scored: Sequence[Row],
    comparable: Sequence[Row],
    behind: dict[str, Difference],
    metric: str,
) -> str:
    """What the number of test rows cannot tell, and roughly how many would."""
    if len(comparable) < 2:
        return ""
    other = chosen if chosen is not best else comparable[1]
    rows = len(set(best.row_keys) & set(other.row_keys))
    gap = behind[other.name]
    if not math.isfinite(gap.high):
        return "The scores come without intervals or per-row values, so no difference can be told from chance."
    sentences = []
    if gap.high * form.metric_scale(metric) > FINE_ENOUGH:
        on = f"With {rows} test rows the" if rows else "The"
        sentences.append(
            f"{on} test set is too small to tell: {best.name} may be up to {form.points(gap.high, metric)} points "
            f"better than {other.name} ({_interval_words(gap, metric)})."
        )
    if rows and gap.mean > 0:
        needed = rows_needed(gap, rows)
        sentences.append(
            f"To show a difference of {form.points(gap.mean, metric)} points, were it real, would take about "
            f"{_rough(needed)} test rows."
        )
    return " ".join(sentences)


def _forgetting(row: Row) -> str:
    """What the method costs on text and questions of other kinds; empty when it has nothing to forget by."""
    if not notable_forgetting(row):
        if not row.trains or row.forgetting_on is None:
            return ""
        return f"Forgetting with {row.name} on is small: {form.number(row.forgetting_on, 3)} nats per token."
    parts = []
    if row.forgetting_on is not None and row.forgetting_on > NOTABLE_FORGETTING:
        rise = math.expm1(row.forgetting_on)
        factor = f"{rise:.0%} higher" if rise < 1 else f"{rise + 1:.1f} times as high"
        parts.append(
            f"the loss on general text rises by {form.number(row.forgetting_on)} nats per token (perplexity {factor})"
        )
    falls = [
        f"on {name} from {probe.base_accuracy:.1%} to {probe.accuracy:.1%}"
        for name, probe in row.probes.items()
        if probe.rows > 0 and probe_drop(probe).low > 0
    ]
    if falls:
        parts.append(f"accuracy falls {form.listing(falls)}, more than chance explains")
    if row.method == "full":
        parts.append("full fine-tuning cannot be switched off")
    elif row.trains and row.forgetting_off == 0:
        parts.append("switched off, the base is back exactly")
    return f"Forgetting with {row.name} on is notable: {'; '.join(parts)}."


def _whole_copy(chosen: Row) -> str:
    if chosen.method != "full":
        return ""
    size = f" ({form.megabytes(chosen.artifact_mb)})" if chosen.artifact_mb is not None else ""
    return f"Full fine-tuning makes a whole model of its own{size}: it shares no base with other customizations."


def _other_rows(chosen: Row, scored: Sequence[Row]) -> str:
    """Which methods were not measured on all of the rows that the choice was, and how many they share."""
    rows = set(chosen.row_keys)
    others = [(row.name, set(row.row_keys)) for row in scored if row.row_keys]
    fewer = [f"{name} ({len(rows & other)} rows)" for name, other in others if rows and other != rows]
    if not fewer:
        return ""
    return f"{chosen.name} has {len(rows)} test rows; set against it over the rows they share: {form.listing(fewer)}."


def _alternative(row: Row, chosen: Row, comparable: bool, metric: str) -> Alternative:
    gap = difference(row, chosen, metric)
    bounded = math.isfinite(gap.low) and math.isfinite(gap.high)
    deltas = {key: _delta(row, chosen, key) for key in ("forgetting_on", "ttft_ms", "ms_per_token", "seconds")}
    parameters = _delta(row, chosen, "trainable_parameters")
    score = f"{form.points(gap.mean, metric, signed=True)} points"
    if bounded:
        score += f" {_interval_text(gap, metric)}"
        score += "" if gap.resolved else ", no difference this data can show"
    parts = [score]
    if deltas["forgetting_on"] is not None:
        parts.append(f"{_signed(deltas['forgetting_on'], 3)} nats per token forgotten")
    if deltas["ttft_ms"] is not None:
        parts.append(f"{_signed(deltas['ttft_ms'], 1)} ms to the first token")
    if deltas["ms_per_token"] is not None:
        parts.append(f"{_signed(deltas['ms_per_token'], 1)} ms per token")
    if _differs(_cost(row, "seconds"), _cost(chosen, "seconds")) and deltas["seconds"]:
        parts.append(f"{form.duration(abs(deltas['seconds']))} {'more' if deltas['seconds'] > 0 else 'less'} training")
    return Alternative(
        name=row.name,
        method=row.method,
        difference=gap.mean,
        low=gap.low if bounded else None,
        high=gap.high if bounded else None,
        comparable=comparable,
        forgetting=deltas["forgetting_on"],
        ttft_ms=deltas["ttft_ms"],
        ms_per_token=deltas["ms_per_token"],
        trainable_parameters=None if parameters is None else int(parameters),
        seconds=deltas["seconds"],
        text=f"{row.name} instead of {chosen.name}: {'; '.join(parts)}.",
    )


def _worth_a_thought(other: Alternative, fronts: dict[str, list[str]]) -> bool:
    """Comparable to the best, or on a front: nothing else gives as much for as little."""
    return other.comparable or any(other.name in names for names in fronts.values())


def _score(row: Row) -> float:
    if row.score is None:
        raise ValueError(f"row {row.name} has no score")
    return row.score


def _interval(row: Row) -> Interval:
    score = _score(row)
    return Interval(
        score if row.score_low is None else row.score_low, score if row.score_high is None else row.score_high
    )


def _cost(row: Row, key: str) -> float | None:
    if key == "latency_ms":
        return latency_ms(row)
    value = getattr(row, key)
    # Prompting trains nothing and takes no training time, whether or not a zero was written down.
    return 0 if value is None and key in ("trainable_parameters", "seconds") and not row.trains else value


def _forgetting_on(row: Row) -> float:
    if row.forgetting_on is not None:
        return row.forgetting_on
    return math.inf if row.trains else 0.0


def _delta(row: Row, chosen: Row, key: str) -> float | None:
    mine, theirs = _cost(row, key), _cost(chosen, key)
    return None if mine is None or theirs is None else mine - theirs


def _differs(a: float | None, b: float | None) -> bool:
    """Whether two costs differ by more than a tenth; less is not worth a word."""
    return a is not None and b is not None and abs(a - b) > 0.1 * max(abs(a), abs(b))


def _probes(row: Row) -> list[Probe]:
    return [probe for probe in row.probes.values() if probe.rows > 0]


def _identical(a: Row, b: Row) -> bool:
    return bool(a.row_keys) and (a.row_keys, a.per_row) == (b.row_keys, b.per_row)


def _with_interval(gap: Difference, metric: str) -> str:
    shown = f"{form.points(gap.mean, metric)} points"
    return f"{shown} ({_interval_words(gap, metric)})" if math.isfinite(gap.low) else shown


def _interval_words(gap: Difference, metric: str) -> str:
    low, high = (form.points(bound, metric, signed=True) for bound in (gap.low, gap.high))
    return f"95% interval {low} to {high}"


def _interval_text(gap: Difference, metric: str) -> str:
    return f"[{form.points(gap.low, metric, signed=True)}, {form.points(gap.high, metric, signed=True)}]"


def _signed(value: float, digits: int) -> str:
    shown = form.number(abs(value), digits)
    return "±0" if float(shown) == 0 else f"{'+' if value > 0 else '-'}{shown}"


def _rough(rows: float) -> str:
    """Two figures are all such an estimate has."""
    if rows > 1e6:
        return "more than a million"
    size = 10 ** max(0, math.floor(math.log10(max(rows, 1))) - 1)
    return f"{math.ceil(rows / size) * size:,}"
