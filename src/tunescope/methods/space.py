"""What a search may choose a setting from. A method says it beside the field: ``rank: Annotated[int, OneOf(8, 32)]``.

Points of a space are numbered. Number 0 is the settings' defaults, and every other one is a function of its number
alone (a Halton sequence: Halton 1960), so that one process and many, today and after a kill, try the same settings.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tunescope.methods.method import Method

_PRIMES = (2, 3, 5, 7, 11, 13)
# The rate decides most, so the first others move it alone.
_RATE_ALONE = 2
# So many points in a row that were tried already: the space has no other.
_MISSES = 100


@dataclass(frozen=True)
class Between:
    """Numbers from ``low`` to ``high``, equally likely on a logarithmic scale."""

    low: float
    high: float

    def at(self, share: float) -> float:
        """The number that lies at this share of the way, from 0 to 1, with two digits."""
        value = self.low * (self.high / self.low) ** share
        return round(value, 1 - math.floor(math.log10(value)))


class OneOf:
    """Any of some values."""

    def __init__(self, *values: Any) -> None:
        self.values = values

    def at(self, share: float) -> Any:
        """The value that lies at this share of the list, from 0 to below 1."""
        return self.values[int(share * len(self.values))]


@dataclass(frozen=True)
class Point:
    """Settings to try.

    Attributes:
        number: of the point; 0 for the defaults.
        settings: of the method, by name, where they are not the defaults.
        lr: learning rate; None for a method that trains nothing.
        draw: what it adds to a seed where the method draws a prompt: shots and their order differ between points.
    """

    number: int
    settings: dict[str, Any]
    lr: float | None
    draw: int = 0


def spaces_of(kind: type[Method]) -> dict[str, OneOf]:
    """What the method's own settings may be, by name."""
    found = {}
    for name, info in kind.model_fields.items():
        for each in info.metadata:
            if isinstance(each, OneOf):
                found[name] = each
    return found


def points(kind: type[Method], *, labels: bool) -> Iterator[Point]:
    """The points of a method's space, each once, beginning with the defaults; endless where there is a rate.

    Args:
        kind: of the method.
        labels: whether the task has labels.
    """
    spaces = spaces_of(kind)
    yield Point(0, {}, kind.learning_rate or None)
    seen: list[tuple[dict[str, Any], float | None]] = [({}, None)]
    number, misses = 0, 0
    defaults = {name: kind.model_fields[name].get_default() for name in spaces}
    while misses < _MISSES:
        number += 1
        chosen = {} if kind.rates and number <= _RATE_ALONE else _chosen(spaces, number)
        settings = {name: value for name, value in chosen.items() if value != defaults[name]}
        # From number + 1 on: the sequence's first number is the middle, which the default stands for.
        lr = kind.rates.at(_radical_inverse(number + 1, 2)) if kind.rates else None
        if (not kind.draws and (settings, lr) in seen) or not (labels or kind(**settings).fits_texts):
            misses += 1
            continue
        seen.append((settings, lr))
        misses = 0
        yield Point(number, settings, lr, number if kind.draws else 0)


def _chosen(spaces: dict[str, OneOf], number: int) -> dict[str, Any]:
    return {
        name: space.at(_radical_inverse(number, prime))
        for (name, space), prime in zip(spaces.items(), _PRIMES[1:], strict=False)
    }


def _radical_inverse(number: int, prime: int) -> float:
    """The number's digits in a prime base, mirrored at the point: 0 ≤ value < 1."""
    value, scale = 0.0, 1.0 / prime
    while number:
        number, digit = divmod(number, prime)
        value += digit * scale
        scale /= prime
    return value
