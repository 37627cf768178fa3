"""Which method to take under the user's own constraints and weights, from a comparison that was measured.

Without weights the rule is that of ``tradeoff``, among the methods that meet the constraints. With weights every axis
is brought to 0 (worst of these methods) to 1 (best), costs by their logarithm, and the highest weighted mean wins.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from pydantic import Field, field_validator

from tunescope.comparison import formatting as form
from tunescope.comparison.results import Comparison, MethodResult
from tunescope.comparison.tradeoff import choose, difference, latency_ms, score_of
from tunescope.errors import TunescopeError, UnknownNameError
from tunescope.settings import Settings

_NEGLIGIBLE = {"forgetting": 0.01, "training": 1.0, "parameters": 1.0, "size": 0.01}  # added before logarithms


def _forgetting(row: MethodResult) -> float | None:
    return 0.0 if row.forgetting_on is None and not row.trains else row.forgetting_on


def _seconds(row: MethodResult) -> float | None:
    return 0.0 if row.seconds is None and not row.trains else row.seconds


def _parameters(row: MethodResult) -> float | None:
    return 0.0 if row.trainable_parameters is None and not row.trains else row.trainable_parameters


@dataclass(frozen=True)
class Axis:
    """A cost: how it is read off a row, and how it is written."""

    value: Callable[[MethodResult], float | None]
    shown: Callable[[float], str]


AXES: Mapping[str, Axis] = {
    "latency": Axis(latency_ms, lambda value: f"{form.milliseconds(value)} ms"),
    "forgetting": Axis(_forgetting, lambda value: f"{value:.3f} nats/token"),
    "training": Axis(_seconds, form.duration),
    "memory": Axis(lambda row: row.peak_memory_mb, form.megabytes),
    "parameters": Axis(_parameters, form.count),
    "size": Axis(lambda row: row.artifact_mb, form.megabytes),
}
"""Costs that can be limited and weighted; ``accuracy``, the comparison's score, can be weighted beside them."""


class Constraints(Settings):
    """What a method must not exceed, and what counts how much."""

    max_latency_ms: float | None = Field(None, gt=0)
    """Milliseconds of an answer of 20 tokens, its prompt included."""
    max_forgetting: float | None = Field(None, ge=0)
    """Rise of the loss on general text while it is on, in nats a token."""
    max_training_seconds: float | None = Field(None, gt=0)
    """Time of its training."""
    max_memory_mb: float | None = Field(None, gt=0)
    """Peak memory while it was trained and measured."""
    max_parameters: int | None = Field(None, ge=0)
    """Parameters that are trained."""
    max_size_mb: float | None = Field(None, gt=0)
    """Size at rest of all tasks together."""
    many_tasks: int = Field(1, gt=0)
    """How many tasks will be customized so and served beside each other: what is kept for each counts as often, and
    whole models are left out where there are several."""
    weights: dict[str, float] = Field(default_factory=dict)
    """What counts how much: accuracy=3,latency=1. Without weights accuracy comes first, and then the cheapest."""

    @field_validator("weights")
    @classmethod
    def _known(cls, weights: dict[str, float]) -> dict[str, float]:
        for name, value in weights.items():
            if name not in ("accuracy", *AXES):
                raise ValueError(str(UnknownNameError("weight", name, ("accuracy", *AXES))))
            if value < 0:
                raise ValueError(f"{name} has the weight {value}: give 0 or more")
        if weights and not any(weights.values()):
            raise ValueError("all weights are 0: give one that counts")
        return weights

    def limits(self) -> dict[str, float]:
        """The limits that are set, by axis."""
        named = {
            "latency": self.max_latency_ms, "forgetting": self.max_forgetting, "training": self.max_training_seconds,
            "memory": self.max_memory_mb, "parameters": self.max_parameters, "size": self.max_size_mb,
        }  # fmt: skip
        return {name: float(value) for name, value in named.items() if value is not None}


@dataclass(frozen=True)
class Decision:
    """What to take.

    Attributes:
        chosen: the method.
        runner_up: the next one among those that meet the constraints; None where it is alone.
        excluded: by name of each other method, why it is out.
        reasons: in words.
        changes: what would change the choice, in words.
        utilities: with weights, each method's weighted mean of 0 to 1.
    """

    chosen: MethodResult
    runner_up: MethodResult | None
    excluded: dict[str, str]
    reasons: list[str]
    changes: list[str]
    utilities: dict[str, float] = field(default_factory=dict)


def decide(comparison: Comparison, constraints: Constraints) -> Decision:
    """Choose among a comparison's methods.

    Raises:
        TunescopeError: no method meets the constraints; names the one that misses them by least.
    """
    rows = [row for row in comparison.rows if row.score is not None]
    if not rows:
        raise TunescopeError("No method of this comparison has a score, so there is nothing to choose from.")
    misses = {row.name: _misses(row, constraints) for row in rows}
    fitting = [row for row in rows if not misses[row.name]]
    if not fitting:
        raise TunescopeError(_nearest(rows, misses, constraints))
    excluded = {name: "; ".join(miss.why for miss in each) for name, each in misses.items() if each}
    if constraints.weights:
        utilities = _utilities(fitting, constraints)
        order = sorted(fitting, key=lambda row: (-utilities[row.name][0], row.name))
        changes = _weight_changes(order, utilities, constraints)
        shown = {row.name: round(utilities[row.name][0], 4) for row in order}
        reasons = [f"Of the {len(fitting)} methods that meet the constraints it has the highest weighted mean."]
    else:
        order = _by_rule(fitting, comparison.metric)
        shown, changes = {}, []
        reasons = _rule_reasons(order, comparison.metric)
    chosen = order[0]
    if not chosen.trains:
        reasons.append("It trains nothing: keep prompting.")
    changes += _relaxations(chosen, rows, misses, comparison.metric)
    return Decision(chosen, order[1] if len(order) > 1 else None, excluded, reasons, changes, shown)


@dataclass(frozen=True)
class _Miss:
    """A limit that a row exceeds; by how much, as a factor, and what limit it needs. Both None for what has none."""

    why: str
    factor: float | None = None
    option: str | None = None


def _misses(row: MethodResult, constraints: Constraints) -> list[_Miss]:
    found = []
    for name, limit in constraints.limits().items():
        value = _cost(row, name, constraints)
        if value is None:
            found.append(_Miss(f"its {name} was not measured"))
        elif value > limit:
            shown = AXES[name].shown
            factor = (value + 1e-9) / (limit + 1e-9)
            found.append(
                _Miss(f"{name} {shown(value)}, and at most {shown(limit)} is allowed", factor, f"{name} {shown(value)}")
            )
    if constraints.many_tasks > 1 and row.method == "full":
        found.append(_Miss(f"{constraints.many_tasks} tasks would be {constraints.many_tasks} whole models"))
    return found


def _cost(row: MethodResult, axis: str, constraints: Constraints) -> float | None:
    value = AXES[axis].value(row)
    return value * constraints.many_tasks if axis == "size" and value is not None else value


def _nearest(rows: Sequence[MethodResult], misses: Mapping[str, Sequence[_Miss]], constraints: Constraints) -> str:
    def far(row: MethodResult) -> float:
        return sum(math.inf if miss.factor is None else math.log(miss.factor) for miss in misses[row.name])

    best = min(rows, key=lambda row: (far(row), -score_of(row)))
    why = "; ".join(miss.why for miss in misses[best.name])
    return f"No method meets the constraints. The nearest is {best.name}: {why}. Allow that, or take a constraint away."


def _by_rule(fitting: Sequence[MethodResult], metric: str) -> list[MethodResult]:
    """All of them, each chosen by the rule among those that are left."""
    left, order = list(fitting), []
    while left:
        choice = choose(left, metric)
        assert choice is not None  # they have scores
        order.append(choice.chosen)
        left.remove(choice.chosen)
    return order


def _rule_reasons(order: Sequence[MethodResult], metric: str) -> list[str]:
    choice = choose(order, metric)
    assert choice is not None
    equal = [row.name for row in choice.comparable if row is not choice.chosen]
    if not equal:
        return ["Every other method that meets the constraints is shown to be worse."]
    listed = form.listing(equal)
    return [f"This data can show no difference to {listed}, and of these it is the cheapest."]


def _utilities(fitting: Sequence[MethodResult], constraints: Constraints) -> dict[str, tuple[float, dict[str, float]]]:
    """For each row its weighted mean, and its place from 0 to 1 on each weighted axis."""
    places: dict[str, dict[str, float]] = {row.name: {} for row in fitting}
    for axis in constraints.weights:
        values = {row.name: _height(row, axis, constraints) for row in fitting}
        known = [value for value in values.values() if value is not None]
        low, high = (min(known), max(known)) if known else (0.0, 0.0)
        for name, value in values.items():
            # What was not measured counts as the worst.
            places[name][axis] = 0.0 if value is None else 1.0 if high == low else (value - low) / (high - low)
    total = sum(constraints.weights.values())
    return {
        name: (sum(constraints.weights[axis] * place for axis, place in on.items()) / total, on)
        for name, on in places.items()
    }


def _height(row: MethodResult, axis: str, constraints: Constraints) -> float | None:
    """More is better."""
    if axis == "accuracy":
        return row.score
    cost = _cost(row, axis, constraints)
    return None if cost is None else -math.log(max(cost, 0.0) + _NEGLIGIBLE.get(axis, 1e-9))


def _weight_changes(
    order: Sequence[MethodResult], utilities: Mapping[str, tuple[float, dict[str, float]]], constraints: Constraints
) -> list[str]:
    """For each axis the weight from which the runner-up would be chosen instead."""
    if len(order) < 2:
        return []
    first, second = (utilities[row.name][1] for row in order[:2])
    gap = sum(weight * (first[axis] - second[axis]) for axis, weight in constraints.weights.items())
    changes = []
    for axis, weight in constraints.weights.items():
        ahead = first[axis] - second[axis]
        turn = weight - gap / ahead if ahead else -1.0
        if turn > 1e-6 * max(constraints.weights.values()):  # a weight of nothing changes nothing
            side = "below" if ahead > 0 else "above"
            changes.append(f"With a weight of {axis} {side} {turn:.2g} (now {weight:g}) it would be {order[1].name}.")
    return changes


def _relaxations(
    chosen: MethodResult, rows: Sequence[MethodResult], misses: Mapping[str, Sequence[_Miss]], metric: str
) -> list[str]:
    """What limits keep out that is shown to be better than the choice."""
    changes = []
    for row in rows:
        needs = [miss.option for miss in misses[row.name]]
        if not needs or None in needs:
            continue
        gain = difference(row, chosen, metric)
        if gain.low > 0:
            more = form.points(gain.mean, metric, signed=True)
            allowed = form.listing([need for need in needs if need])
            changes.append(f"Allowing {allowed}, {row.name} would be possible: {more} points of {metric}.")
    return changes
