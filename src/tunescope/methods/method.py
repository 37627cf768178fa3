"""What a method is: what is trained, and how it begins."""

from __future__ import annotations

from abc import ABC
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import model_validator

from tunescope.base import Base
from tunescope.data.rows import Row
from tunescope.data.template import Template
from tunescope.errors import BaseModelError
from tunescope.methods.effects import Effect
from tunescope.settings import Settings


class Method(Settings, ABC):
    """A point of the customization spectrum. Its fields are its settings and the flags of ``tunescope train NAME``.

    A subclass says what it changes against the base: the text around a row (``prompt``), effects at sites of the model
    (``effects``), or the model's own weights (``trains = "base"``).
    """

    name: ClassVar[str]
    """As written on the command line."""
    trains: ClassVar[Literal["nothing", "effects", "base"]] = "effects"
    """Which parameters move."""
    learning_rate: ClassVar[float] = 0.0
    """A rate that works without tuning, on batches of 8."""

    def prompt(self, template: Template, rows: Sequence[Row], labels: Sequence[str] | None, seed: int) -> Template:
        """The template this method puts around a row; ``rows`` are training rows it may show."""
        return template

    def effects(self, base: Base, generator: torch.Generator) -> dict[str, Effect]:
        """New effects, keyed by the site they act at (``3.q``, or ``embedding``), at their identity.

        Raises:
            UnknownNameError: a site this architecture does not have.
        """
        return {}

    def rate_of(self, parameter: str) -> float:
        """The multiple of the learning rate that a parameter gets; one for all unless a method says otherwise."""
        return 1.0


class SiteMethod(Method):
    """A method with one effect at each of some sites."""

    targets: tuple[str, ...]
    """Names of sites, comma-separated: q k v o gate up down, attention_out mlp_out, or all-linear."""
    layers: tuple[int, ...] | None = None
    """Only these layers, counted from 0; all by default."""

    @model_validator(mode="after")
    def _some_targets(self) -> SiteMethod:
        if not self.targets or self.layers == ():
            raise ValueError("targets and layers must name at least one place, or nothing would be trained")
        return self

    def sites(self, base: Base) -> Any:
        """The sites that ``targets`` and ``layers`` name."""
        from tunescope.base.sites import LINEAR_SITES

        names: tuple[str, ...] = ()
        for target in self.targets:
            linear = tuple(name for name in base.sites.names if name in LINEAR_SITES)
            names += linear if target == "all-linear" else (target,)
        found = base.sites.select(tuple(dict.fromkeys(names)), self.layers)
        if not found:
            raise BaseModelError(f"No site matches targets {', '.join(self.targets)}: nothing would be trained.")
        return found
