"""The recommendation in words: which method to take, why, and what the alternatives give up and gain.

The rule by which it is chosen is in `tradeoff`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from tunescope.comparison import formatting as form
from tunescope.comparison.results import Advice, Alternative, MethodResult
from tunescope.comparison.tradeoff import (
    ANSWER_TOKENS,
    COSTS,
    NOTABLE_FORGETTING,
    Choice,
    choose,
    cost_of,
    cost_order,
    difference,
    favorite_of,
    latency_ms,
    notable_forgetting,
    pareto,
    probe_drop,
)
from tunescope.evaluation.statistics import Difference, rows_needed

FINE_ENOUGH = 5.0
"""Points (of 100) of uncertainty above which the test set is called too small."""

_OF_A_HUNDRED = form.FRACTIONS | {"chrf"}  # a judge's scores have a scale of their own

ALTERNATIVES_SHOWN = 4
"""How many alternatives the text describes; the record holds them all."""


def advise(rows: Sequence[MethodResult], metric: str, split: str = "test") -> Advice:
    """Recommend one of the rows.

    Args:
        rows: as measured; rows without a score are named with their note and otherwise left out.
        metric: name of the main score, which higher is better; decides how scores are written.
        split: what the scores are of: ``test`` rows, or ``validation`` rows while the search goes on.
    """
    failed = [f"{row.name} has no score: {row.note}." for row in rows if row.score is None]
    choice = choose(rows, metric)
    if choice is None:
        headline = "No method has a score, so there is nothing to recommend."
        return Advice(recommended=None, headline=headline, reasons=failed, text="\n".join([headline, *failed]))
    chosen, comparable = choice.chosen, choice.comparable
    fronts = {cost: pareto(choice.scored, cost) for cost in COSTS}
    alternatives = [_alternative(row, chosen, row in comparable, metric) for row in choice.scored if row is not chosen]
    reasons = [
        _not_final(split),
        _against_best(choice),
        _against_zero_shot(choice),
        _resolution(choice, split),
        _forgetting(chosen),
        *(_forgetting(row) for row in comparable if row is not chosen and notable_forgetting(row)),
        _whole_copy(chosen),
        _favorites(choice.scored),
        _other_rows(chosen, choice.scored),
        *failed,
    ]
    reasons = [reason for reason in reasons if reason]
    headline = _headline(chosen, metric, split)
    worth = sorted(
        (other for other in alternatives if _worth_a_thought(other, fronts)), key=lambda other: not other.comparable
    )[:ALTERNATIVES_SHOWN]
    return Advice(
        recommended=chosen.name,
        headline=headline,
        reasons=reasons,
        alternatives=alternatives,
        fronts=fronts,
        text="\n".join([headline, *(f"- {line}" for line in [*reasons, *(other.text for other in worth)])]),
    )


def _headline(chosen: MethodResult, metric: str, split: str) -> str:
    interval = ""
    if chosen.score_low is not None and chosen.score_high is not None:
        interval = f" ({form.score(chosen.score_low, metric)} to {form.score(chosen.score_high, metric)})"
    lead = f"Take {chosen.name}" if split == "test" else f"So far {chosen.name}"
    return f"{lead}: {form.metric_name(metric)} {form.score(chosen.score, metric)}{interval} on the {split} rows."


def _not_final(split: str) -> str:
    if split == "test":
        return ""
    return (
        "The search goes on: these are scores on validation rows, by which settings are chosen, so the best ones "
        "flatter a little. Forgetting and latency are not measured yet."
    )


def _against_best(choice: Choice) -> str:
    """The choice against the highest score, and why it was preferred among the comparable ones."""
    chosen, best, behind, metric = choice.chosen, choice.best, choice.behind, choice.metric
    comparable = choice.comparable
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


def _why(chosen: MethodResult, comparable: Sequence[MethodResult]) -> str:
    """The first stated cost on which the choice is ahead of the others, in numbers."""
    rivals = [row for row in comparable if row is not chosen]
    mine = cost_order(chosen, comparable)
    theirs = min(cost_order(row, comparable) for row in rivals)
    decided = next((i for i, (ours, other) in enumerate(zip(mine, theirs, strict=True)) if ours != other), 6)
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


def _against_zero_shot(choice: Choice) -> str:
    chosen, scored, metric = choice.chosen, choice.scored, choice.metric
    plain = next((row for row in scored if row.method == "zero-shot"), None)
    if plain is None or len(scored) == 1:
        return ""
    if not any(difference(row, plain, metric).low > 0 for row in scored if row is not plain):
        return f"Nothing here is shown to beat {plain.name}, the base model as it is."
    gain = difference(chosen, plain, metric)
    return f"Against {plain.name}, the base model as it is, {chosen.name} gains {_with_interval(gain, metric)}."


def _resolution(choice: Choice, split: str) -> str:
    """What the number of rows cannot show, and roughly how many would."""
    if split != "test":
        return ""
    best, behind, comparable, metric = choice.best, choice.behind, choice.comparable, choice.metric
    if len(comparable) < 2:
        return ""
    other = choice.chosen if choice.chosen is not best else comparable[1]
    rows = len(set(best.row_keys) & set(other.row_keys))
    gap = behind[other.name]
    if not math.isfinite(gap.high):
        return "The scores come without intervals or per-row values, so no difference can be told from chance."
    sentences = []
    if metric in _OF_A_HUNDRED and gap.high * form.metric_scale(metric) > FINE_ENOUGH:
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


def _forgetting(row: MethodResult) -> str:
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


def _favorites(scored: Sequence[MethodResult]) -> str:
    """Which methods answer one label nearly always, whatever the text."""
    found = [(row.name, *favorite) for row in scored if (favorite := favorite_of(row))]
    if not found:
        return ""
    told = [
        f"{name} answers {label!r} for {share:.0%} of the rows (its share is {own:.0%})"
        for name, label, share, own in found
    ]
    return f"Some answer one label whatever the text: {form.listing(told)}."


def _whole_copy(chosen: MethodResult) -> str:
    if chosen.method != "full":
        return ""
    size = f" ({form.megabytes(chosen.artifact_mb)})" if chosen.artifact_mb is not None else ""
    return f"Full fine-tuning makes a whole model of its own{size}: it shares no base with other customizations."


def _other_rows(chosen: MethodResult, scored: Sequence[MethodResult]) -> str:
    """Which methods were not measured on all of the rows that the choice was, and how many they share."""
    rows = set(chosen.row_keys)
    others = [(row.name, set(row.row_keys)) for row in scored if row.row_keys]
    fewer = [f"{name} ({len(rows & other)} rows)" for name, other in others if rows and other != rows]
    if not fewer:
        return ""
    return f"{chosen.name} has {len(rows)} test rows; set against it over the rows they share: {form.listing(fewer)}."


def _alternative(row: MethodResult, chosen: MethodResult, comparable: bool, metric: str) -> Alternative:
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
    if _differs(cost_of(row, "seconds"), cost_of(chosen, "seconds")) and deltas["seconds"]:
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


def _delta(row: MethodResult, chosen: MethodResult, key: str) -> float | None:
    mine, theirs = cost_of(row, key), cost_of(chosen, key)
    return None if mine is None or theirs is None else mine - theirs


def _differs(a: float | None, b: float | None) -> bool:
    """Whether two costs differ by more than a tenth; less is not worth a word."""
    return a is not None and b is not None and abs(a - b) > 0.1 * max(abs(a), abs(b))


def _identical(a: MethodResult, b: MethodResult) -> bool:
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
