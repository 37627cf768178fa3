"""What a method is: what is trained, and how it begins."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import ClassVar, Literal, TypeVar

import torch
from pydantic import model_validator

from tunescope.base import Base, Site, Sites
from tunescope.base.sites import LINEAR_SITES
from tunescope.data.rows import Row
from tunescope.data.template import Template
from tunescope.errors import UnknownNameError
from tunescope.methods.effects import Effect
from tunescope.methods.space import Between
from tunescope.settings import Settings

T = TypeVar("T")


class Method(Settings, ABC):
    """A point of the customization spectrum. Its fields are its settings and the flags of ``tunescope train NAME``.

    A subclass says what it changes against the base: the text around a row (``prompt``), effects at sites of the model
    (``effects``), or the model's own weights (``trains = "base"``).
    """

    name: ClassVar[str]
    """As written on the command line."""
    trains: ClassVar[Literal["nothing", "effects", "base"]] = "effects"
    """Which parameters move."""
    effect: ClassVar[type[Effect] | None] = None
    """The kind of effect it compiles to, if any."""
    learning_rate: ClassVar[float] = 0.0
    """A rate that works without tuning, on batches of 8."""
    rates: ClassVar[Between | None] = None
    """Rates that a search tries; about 10 times less and more than those that were best on several sets."""
    draws: ClassVar[bool] = False
    """Whether its prompt is drawn, so that another seed is another prompt."""

    @property
    def fits_texts(self) -> bool:
        """Whether its settings have a meaning for tasks without labels."""
        return True

    @property
    def rows_read(self) -> int:
        """How many rows' texts are read for each row that is answered: its own, and what is shown to it alone."""
        return 1

    def prompt(self, template: Template, rows: Sequence[Row], labels: Sequence[str] | None, seed: int) -> Template:
        """The template this method puts around a row; ``rows`` are training rows it may show."""
        return template

    def effects(self, base: Base, generator: torch.Generator, labels: Sequence[str] | None = None) -> dict[str, Effect]:
        """New effects as training begins, keyed by site and kind (``3.q.low_rank``, ``embedding.prefix``).

        Args:
            base: the base they will act on.
            generator: of everything drawn.
            labels: of a classification task, for methods that begin from them.

        Raises:
            UnknownNameError: a site this architecture does not have.
        """
        return {}

    def rate_of(self, parameter: str) -> float:
        """The multiple of the learning rate that a parameter gets; one for all unless a method says otherwise.

        Args:
            parameter: its name in the customization, for example ``3_q_low_rank.B``.
        """
        return 1.0


class SiteMethod(Method):
    """A method with one effect at each of some sites."""

    targets: tuple[str, ...]
    """Sites, comma-separated: names (q k v o gate up down), all-linear, or layer.name with wildcards (0.q, 1?.*)."""
    layers: tuple[int, ...] | None = None
    """Only these layers, counted from 0; all by default."""

    @model_validator(mode="after")
    def _some_targets(self) -> SiteMethod:
        if not self.targets or self.layers == ():
            raise ValueError("targets and layers must name at least one place, or nothing would be trained")
        return self

    def sites(self, base: Base) -> tuple[Site, ...]:
        """The sites that ``targets`` and ``layers`` name, in order.

        Raises:
            UnknownNameError: a name this architecture has no site for, or a pattern that matches nothing.
        """
        chosen: set[Site] = set()
        for target in self.targets:
            chosen.update(_matching(base.sites, target, self.layers))
        return tuple(site for site in base.sites.all if site in chosen)


def _matching(sites: Sites, target: str, layers: tuple[int, ...] | None) -> tuple[Site, ...]:
    if target == "all-linear":
        return sites.select(tuple(name for name in sites.names if name in LINEAR_SITES), layers)
    if "." not in target:
        return sites.select((target,), layers)
    allowed = sites.select(sites.names, layers)
    found = tuple(site for site in allowed if fnmatchcase(site.key, target))
    if not found:
        raise UnknownNameError("site", target, (site.key for site in allowed))
    return found


def by_site(values: Mapping[str, T], default: T, site: Site) -> T:
    """The value for a site: that of the last key matching its name or its ``layer.name``, else the default."""
    fitting = [value for key, value in values.items() if fnmatchcase(site.key if "." in key else site.name, key)]
    return fitting[-1] if fitting else default


def check_by_site(setting: str, values: Mapping[str, object], sites: Sequence[Site]) -> None:
    """Refuse keys that match no site: they would be settings without an effect.

    Raises:
        UnknownNameError: naming the first such key.
    """
    for key in values:
        names = [site.key if "." in key else site.name for site in sites]
        if not any(fnmatchcase(name, key) for name in names):
            raise UnknownNameError(f"site in {setting}", key, dict.fromkeys(names))
