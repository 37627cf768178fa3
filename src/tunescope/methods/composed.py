"""Several methods in one customization, trained together: a soft prompt and LoRA, for example.

Spelled ``prompt-tuning+lora``. The effects act at different places or in different ways, so nothing new has to be
computed: a row carries all of them. Every kind of effect may occur once. Where two meet at one linear map, the low-rank
change comes first and the scale after it: l ⊙ (W x + B A x).

The settings are those of the parts side by side; a name that more than one part has gets the part's name before it
(``lora_targets``, ``ia3_targets``). Each part keeps its own learning rate: ``--lr`` is that of the first part, and the
others keep their ratio to it.
"""

from __future__ import annotations

import copy
import functools
from collections import Counter
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from pydantic import create_model, model_validator

from tunescope.base import Base
from tunescope.data.rows import Row
from tunescope.data.template import Template
from tunescope.errors import TunescopeError
from tunescope.methods.effects import Bottleneck, Effect, LowRank, Scale, SoftPrompt
from tunescope.methods.method import Method

# In the order in which effects at one site act.
_ORDER: tuple[type[Effect], ...] = (SoftPrompt, LowRank, Scale, Bottleneck)


class Composed(Method):
    """Several methods as one. Classes of this kind are made by ``composed_class``."""

    part_classes: ClassVar[tuple[type[Method], ...]]
    """The methods, in the order in which their effects act."""
    owners: ClassVar[dict[str, tuple[int, str]]]
    """Setting -> which part it belongs to, and its name there."""

    @functools.cached_property
    def parts(self) -> tuple[Method, ...]:
        """The methods with their settings."""
        values: list[dict[str, Any]] = [{} for _ in self.part_classes]
        for own, (index, name) in self.owners.items():
            values[index][name] = getattr(self, own)
        return tuple(kind.parse(given) for kind, given in zip(self.part_classes, values, strict=True))

    @model_validator(mode="after")
    def _check_parts(self) -> Composed:
        self.parts  # noqa: B018 (building them checks them)
        return self

    def prompt(self, template: Template, rows: Sequence[Row], labels: Sequence[str] | None, seed: int) -> Template:
        """What every part puts around a row."""
        for part in self.parts:
            template = part.prompt(template, rows, labels, seed)
        return template

    def effects(self, base: Base, generator: torch.Generator, labels: Sequence[str] | None = None) -> dict[str, Effect]:
        """The effects of every part."""
        return {key: effect for part in self.parts for key, effect in part.effects(base, generator, labels).items()}

    def rate_of(self, parameter: str) -> float:
        """The rate of the part that the parameter belongs to, as a multiple of the first part's."""
        for part in self.parts:
            if part.effect is not None and f"_{part.effect.kind}." in parameter:
                return part.learning_rate / self.learning_rate * part.rate_of(parameter)
        return 1.0


def compose(*parts: Method) -> Composed:
    """One method of several, with the settings they have: ``compose(PromptTuning(), LoRA(rank=4))``.

    Raises:
        TunescopeError: parts that cannot be together.
    """
    kind = composed_class(*(type(part) for part in parts))
    given = {type(part): part for part in parts}
    values = {own: getattr(given[kind.part_classes[index]], name) for own, (index, name) in kind.owners.items()}
    return kind(**values)


def composed_class(*classes: type[Method]) -> type[Composed]:
    """The class of one method made of several; the order in which they are named does not matter.

    Raises:
        TunescopeError: fewer than two, a method without effects, or one kind of effect twice.
    """
    for kind in classes:
        if kind.effect not in _ORDER:
            raise TunescopeError(f"{kind.name} cannot be a part of a composition: only methods with effects can.")
    ordered = sorted(classes, key=lambda kind: _ORDER.index(kind.effect))
    if len(classes) < 2 or len({kind.effect for kind in classes}) < len(classes):
        names = "+".join(kind.name for kind in ordered)
        raise TunescopeError(f"{names} is no composition: it takes two or more methods, each with effects of its own.")
    return _made(tuple(ordered))


@functools.cache
def _made(classes: tuple[type[Method], ...]) -> type[Composed]:
    counts = Counter(name for kind in classes for name in kind.model_fields)
    fields: dict[str, Any] = {}
    owners: dict[str, tuple[int, str]] = {}
    for index, kind in enumerate(classes):
        for name, field in kind.model_fields.items():
            own = name if counts[name] == 1 else f"{kind.name.replace('-', '_')}_{name}"
            fields[own], owners[own] = (field.annotation, copy.copy(field)), (index, name)
    made = create_model("".join(kind.__name__ for kind in classes), __base__=Composed, **fields)
    made.__doc__ = " and ".join((kind.__doc__ or kind.name).strip().splitlines()[0].rstrip(".") for kind in classes)
    made.name = "+".join(kind.name for kind in classes)
    made.learning_rate, made.rates = classes[0].learning_rate, classes[0].rates
    made.part_classes, made.owners = classes, owners
    return made
