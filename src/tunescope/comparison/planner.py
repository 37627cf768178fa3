"""Makes each method's plan: measures how fast it trains here, and turns its share of the budget into steps."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any

from tunescope.comparison.aim import best
from tunescope.comparison.plan import MOST_PROMPTS, Bracket, Costs, Plan, bracket_of, least_of, prompting_bracket
from tunescope.data.batching import BatchOrder
from tunescope.data.encoding import Encoder
from tunescope.data.template import default_template
from tunescope.errors import DataError
from tunescope.inference import Item, score
from tunescope.methods import Customized, Method, ZeroShot
from tunescope.methods.space import points
from tunescope.training import train
from tunescope.training.learner import steps_of_round

if TYPE_CHECKING:
    from tunescope.comparison.runner import Given
    from tunescope.comparison.search import Task

# The first steps of a trial are slower (fresh memory, cold caches) and are not counted.
_TRIAL_STEPS, _WARM_UP = 3, 1
# Rows whose lengths stand for all: their mean is within a few percent, the machine's speed is not.
_SAMPLE = 512
# Rows that scoring is timed on.
_TIMED_ROWS = 16
# Tokens that the built-in probes take, twice the general text among them, and seconds of the latency's requests.
_PROBE_TOKENS, _LATENCY_SECONDS = 26_000, 5.0


class Planner:
    """Makes the plans of a comparison's methods.

    Args:
        methods: how many share the budget.
        given: data and settings.
    """

    def __init__(self, methods: int, given: Given) -> None:
        self._methods, self._given = methods, given

    def plan(self, kind: type[Method], before: Plan | None, budget: float) -> Plan:
        """What a method may spend.

        Args:
            kind: of the method.
            before: its plan for a smaller budget; what that has not spent becomes a further bracket.
            budget: of the whole comparison, in seconds, or tokens of each method.

        Raises:
            TunescopeError: the method cannot be trained on these rows.
        """
        given, task = self._given, self._given.task
        brackets = before.brackets if before is not None else []
        by_tokens = given.settings.budget_tokens is not None
        if before is not None and brackets:
            share = (budget - before.budget) if by_tokens else (budget - before.budget) / self._methods
            speed = Speed(before.step_seconds, before.step_tokens)
        else:
            share = budget if by_tokens else self._share(budget)
            speed = self._speed(kind)
        least: float | None = None
        first = max((bracket.first + bracket.count for bracket in brackets), default=0)
        asked = [task.aim.validation_work(len(rows)) for rows in task.validation]
        rows = (asked[0], asked[1], round(task.aim.test_work(len(given.test_rows))))
        if kind.trains == "nothing":
            found = islice(points(kind, labels=task.aim.labels is not None), first, first + MOST_PROMPTS)
            read = [kind.parse(point.settings).rows_read for point in found]
            made: Bracket | None = prompting_bracket(
                share, speed.step_tokens if by_tokens else speed.step_seconds, rows, first, read
            )
        else:
            costs = (
                Costs(speed.step_tokens, 0.0, 0.0)
                if by_tokens
                else Costs(speed.step_seconds, speed.stage_seconds, self._row)
            )
            most = steps_of_round(task.settings, len(task.rows))
            made = bracket_of(share, costs, most, rows, first, len(given.sizes))
            if made is None:
                needed = least_of(costs, most, rows, len(given.sizes)) - share
                least = budget + needed * (1 if by_tokens else self._methods)
        if made is not None:
            brackets = [*brackets, made]
        unspent = before is not None and made is None  # too little for anything: it waits until there is more
        return Plan(
            budget=before.budget if before is not None and unspent else budget,
            step_seconds=speed.step_seconds,
            step_tokens=speed.step_tokens,
            brackets=brackets,
            asked=budget,
            least=None if brackets else least,
        )

    def _share(self, budget: float) -> float:
        """Seconds of each method's search: its share of the budget, less what measuring it on the test rows takes."""
        aim, tested = self._given.task.aim, len(self._given.test_rows)
        probing = _PROBE_TOKENS * self._token if self._given.probes is not None else 0.0
        return budget / self._methods - aim.test_work(tested) * self._row - probing - _LATENCY_SECONDS

    @cached_property
    def _plain(self) -> Customized:
        """The base as it answers."""
        task = self._given.task
        _, first = task.aim.learned(ZeroShot, task.rows[:1])
        return train(task.base, ZeroShot(), data=first, pattern=task.pattern, style=task.style).customized

    @cached_property
    def _row(self) -> float:
        """Seconds that measuring a validation row takes the base."""
        task = self._given.task
        rows = task.validation[1][:_TIMED_ROWS]
        task.aim.look(self._plain, rows[:2])  # the first pass is slower
        started = time.perf_counter()
        task.aim.look(self._plain, rows)
        return (time.perf_counter() - started) / len(rows)

    @cached_property
    def _token(self) -> float:
        """Seconds that scoring a token takes the base."""
        if self._given.task.aim.labels:
            return self._row / max(self._row_tokens, 1)
        base, rows = self._plain.base, [best(row) for row in self._given.task.validation[1][:_TIMED_ROWS]]
        encoder = Encoder(
            base.tokenizer, self._plain.template, base.context_length, self._given.task.settings.max_length
        )
        encoded = encoder.encode_all(rows)
        started = time.perf_counter()
        score(self._plain, [Item(each.prompt, [each.completion]) for each in encoded])
        return (time.perf_counter() - started) / max(sum(map(len, encoded)), 1)

    @cached_property
    def _row_tokens(self) -> float:
        """Tokens of a row as the base reads it."""
        return tokens_of_step(ZeroShot(), self._given.task)[1] / self._given.task.settings.batch_size

    def _speed(self, kind: type[Method]) -> Speed:
        if kind.trains == "nothing":
            return Speed(self._row, self._row_tokens)
        return speed_of(kind(), self._given.task)


@dataclass(frozen=True)
class Speed:
    """What was measured of a method: seconds and tokens of a step, and seconds a training takes beside its steps."""

    step_seconds: float
    step_tokens: float
    stage_seconds: float = 0.0


def tokens_of_step(method: Method, task: Task) -> tuple[list[int], float]:
    """Tokens of each of some steps, and their mean."""
    base, settings = task.base, task.settings
    objective, sample = task.aim.learned(type(method), _sample(task))
    template = default_template(base.tokenizer, pattern=task.pattern, style=task.style)
    shown = method.prompt(template, sample, None, settings.seed)
    encoder = Encoder(base.tokenizer, shown, base.context_length, settings.max_length, objective.cut)
    examples = objective.examples(sample, encoder)
    if not examples:
        raise DataError("No training row is left: none fits. Raise --max-length or shorten the completions.")
    order = BatchOrder.of(examples, settings.batch_size, settings.seed)
    tokens = [sum(order.lengths[i] for i in batch) for batch in order.epoch(0)]
    return tokens, sum(tokens) / len(tokens)


def speed_of(method: Method, task: Task) -> Speed:
    """How fast the method trains here, by a few steps that are thrown away."""
    tokens, mean = tokens_of_step(method, task)
    objective, sample = task.aim.learned(type(method), _sample(task))
    trial = task.settings.model_copy(update={"max_steps": _TRIAL_STEPS})
    started = time.perf_counter()
    result = train(task.base, method, objective, sample, settings=trial, pattern=task.pattern, style=task.style).result
    beside = time.perf_counter() - started - result.seconds
    counted = sum(tokens[i % len(tokens)] for i in range(_WARM_UP, _TRIAL_STEPS))
    per_token = (result.times[-1] - result.times[_WARM_UP - 1]) / counted
    return Speed(per_token * mean, mean, beside)  # all rows are tokenized once, and kept


def _sample(task: Task) -> list[Any]:
    """Rows whose lengths stand for all."""
    return random.Random(task.settings.seed).sample(task.rows, min(_SAMPLE, len(task.rows)))
