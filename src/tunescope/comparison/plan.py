"""How a method's share of the budget is spent: how many settings are tried, and how far each is trained.

Settings compete in rungs (successive halving: Jamieson and Talwalkar 2016, arXiv:1502.07943), within a method and never
across methods: all are trained for a ninth of the way, say, the better third goes on to a third of it, and the best of
those to the end. Nobody starts over: each goes on from where it paused, under one schedule of the rate. Time is turned
into steps once, by the speed that was measured at the start, and the plan is kept; so the same plan gives the same
numbers again, whatever else the machine does that day.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tunescope.comparison.part import Part

KEEP = 3
"""One of so many settings goes on at each rung."""
# (settings, seeds of the best, fewest steps of the best that are worth it), in order of preference. More settings with
# fewer steps each would be told apart by noise; further seeds show how far the result can be relied on.
_SIZES = ((27, 3, 540), (9, 3, 180), (9, 1, 90), (3, 1, 15), (1, 1, 10))
MOST_PROMPTS = _SIZES[0][0]
"""The most that a bracket takes."""
# Fewer steps than this tell nothing about a setting.
_FEWEST_STEPS = 5


class Bracket(Part):
    """Settings that compete with each other.

    For a method that is trained ``rungs`` are optimizer steps, counted from the start; for prompting they are rows of
    the validation data.
    """

    first: int
    """How many settings earlier brackets took."""
    count: int
    """How many settings begin."""
    rungs: list[int]
    """Where they are measured and two of three stop; the last is the end of the run."""
    seeds: int
    """How many times the best is trained, with seeds of its own."""

    def alive(self, level: int) -> int:
        """How many settings are measured at a rung."""
        return max(1, -(-self.count // KEEP**level))

    def on_all_rows(self, level: int) -> bool:
        """Whether a rung is measured on all validation rows: where a choice among few is left, not a first look."""
        return self.alive(level) > 1 and (level > 0 or len(self.rungs) == 1)


class Plan(Part):
    """What a method may spend, kept with the comparison."""

    budget: float
    """Of the whole comparison when the last bracket was made, in seconds."""
    step_seconds: float
    """An optimizer step; for prompting, scoring a row."""
    step_tokens: float
    """Tokens of a step, or of a row."""
    brackets: list[Bracket]
    asked: float = 0.0
    """The budget it was last made for; more than ``budget`` where what was added pays for nothing yet."""
    error: str | None = None
    """Why the method cannot be trained on these rows."""
    least: float | None = None
    """Where the budget pays for nothing: the least that would, in the same unit."""


@dataclass(frozen=True)
class Costs:
    """What a method's work takes, in seconds; in tokens where the budget is in tokens, and then only steps cost."""

    step: float
    stage: float
    row: float


def bracket_of(
    share: float, costs: Costs, most: int, rows: tuple[int, int, int], first: int = 0, sizes: int = 0
) -> Bracket | None:
    """The widest competition that a share of the budget pays for; None if it pays for nothing worth having.

    Args:
        share: in the unit of the costs.
        costs: of a step, of each training that begins or goes on, and of scoring a row.
        most: steps that the epochs take.
        rows: of the validation data, at the first rung and at later ones, and of the test data.
        first: how many settings earlier brackets took.
        sizes: on how many smaller sets of rows the best is to be trained, too.
    """
    for count, seeds, fewest in _SIZES:
        made = Bracket(first=first, count=count, rungs=_rungs(most, count), seeds=seeds)
        while (cost := cost_of(made, costs, rows, sizes)) > share and made.rungs[-1] >= min(fewest, most):
            longest = min(made.rungs[-1] - 1, int(made.rungs[-1] * max(share, 0) / cost))
            made = made.model_copy(update={"rungs": _rungs(longest, count)})
        if made.rungs[-1] >= min(fewest, most):
            return made
    return None


def least_of(costs: Costs, most: int, rows: tuple[int, int, int], sizes: int = 0) -> float:
    """The least share that ``bracket_of`` makes anything of; arguments as there."""
    _, seeds, fewest = _SIZES[-1]
    return cost_of(Bracket(first=0, count=1, rungs=_rungs(min(fewest, most), 1), seeds=seeds), costs, rows, sizes)


def cost_of(bracket: Bracket, costs: Costs, rows: tuple[int, int, int], sizes: int = 0) -> float:
    """What a bracket of a trained method costs, but for the first measurement on the test rows."""
    total, before = 0.0, 0
    for level, steps in enumerate(bracket.rungs):
        scored = rows[bracket.on_all_rows(level)]
        total += bracket.alive(level) * ((steps - before) * costs.step + costs.stage + scored * costs.row)
        before = steps
    again = bracket.rungs[-1] * costs.step + costs.stage + rows[2] * costs.row
    return total + (bracket.seeds - 1 + sizes) * again


def prompting_bracket(
    share: float, row: float, rows: tuple[int, int, int], first: int = 0, read: Sequence[int] = ()
) -> Bracket:
    """The most prompts that a share of the budget scores; at least one.

    Args:
        share: as for ``bracket_of``.
        row: what scoring a row costs.
        rows: of the validation data: all are scored on the fewer, the better third on all of them.
        first: how many earlier brackets took.
        read: how many rows' texts each of the next prompts reads for a row; one where it does not say. Those that go on
            are taken to be as the mean.
    """

    def cost(count: int) -> float:
        each = [*read[:count], *[1] * (count - len(read))]
        return (sum(each) * rows[0] + -(-count // KEEP) * sum(each) / count * rows[1]) * row

    counts = [count for count, _, _ in _SIZES if cost(count) <= share]
    return Bracket(first=first, count=max(counts, default=1), rungs=sorted(set(rows[:2])), seeds=1)


def _rungs(longest: int, count: int) -> list[int]:
    """Where settings are measured: at the end, and at each third of the way before that while it tells anything.

    Once at least, also where there is nothing to choose: the first table comes sooner.
    """
    found, level = [longest], 1
    while KEEP**level <= max(count, KEEP) and longest // KEEP**level >= _FEWEST_STEPS:
        found.append(longest // KEEP**level)
        level += 1
    return found[::-1]
