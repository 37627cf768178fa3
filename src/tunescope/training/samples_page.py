"""``samples.html``: what a policy writes, beside its reference, and how its rounds went. One file that opens anywhere.

It holds no script, and its content security policy forbids every request. All texts are escaped by the template.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from itertools import groupby
from typing import Any

import jinja2

from tunescope.objectives import Objective

_PLOTS = (
    ("reward", "Reward", "as the reward gave it, mean of the round's samples"),
    ("held_out", "Held-out judge", "which nothing is learned from"),
    ("kl", "KL to the reference", "nats a sample"),
    ("entropy", "Entropy", "nats a token"),
    ("length", "Length", "tokens a sample"),
    ("stop_share", "Stop share", "samples that ended of themselves"),
    ("explained_variance", "Explained variance", "share of the returns that the critic foresaw"),
)
_WIDTH, _HEIGHT = 300.0, 90.0


@dataclass(frozen=True)
class Plot:
    """A line over the rounds.

    Attributes:
        title: what it shows.
        unit: what is counted.
        points: in the plot's own coordinates, as SVG has them.
        low: its smallest value.
        high: its largest value.
        last: of the round that was collected last.
    """

    title: str
    unit: str
    points: str
    low: float
    high: float
    last: float


def render_samples(objective: Objective, method: str, base: str, samples: Sequence[Mapping[str, Any]]) -> str:
    """The page.

    Args:
        objective: with its history, and its warnings as notes.
        method: name of what is trained.
        base: name of what it is trained on.
        samples: lines of ``samples.jsonl``, by round; those without the reference's sample are left out.
    """
    compared = (each for each in samples if "reference" in each)
    rounds = [(number, list(own)) for number, own in groupby(compared, key=lambda each: each["round"])]
    return _template().render(
        objective=objective.name,
        settings=[(name, value) for name, value in objective.model_dump(mode="json").items() if value is not None],
        method=method,
        base=base,
        done=len(objective.history),
        asked=objective.number_of_rounds,
        warnings=objective.notes([]),
        plots=[
            _plot(objective.history, *plot) for plot in _PLOTS if all(plot[0] in seen for seen in objective.history)
        ],
        width=_WIDTH,
        height=_HEIGHT,
        rounds=rounds[::-1],
    )


def _plot(history: Sequence[Mapping[str, float]], name: str, title: str, unit: str) -> Plot:
    values = [seen[name] for seen in history]
    low, high = min(values), max(values)
    spread, right = (high - low) or 1.0, max(len(values) - 1, 1)
    points = [
        f"{_WIDTH * i / right:.1f},{_HEIGHT * (1 - (value - low) / spread):.1f}" for i, value in enumerate(values)
    ]
    return Plot(title, unit, " ".join(points), low, high, values[-1])


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(
        resources.files("tunescope.training").joinpath("samples.html").read_text(encoding="utf-8")
    )
