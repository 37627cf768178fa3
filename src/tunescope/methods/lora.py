"""LoRA: a low-rank change of chosen linear maps (Hu et al. 2021, arXiv:2106.09685).

Against the plain transformer, at each target:

    y = W x   becomes   y = W x + (alpha / rank) · B A x

with A [rank, in] random and B [out, rank] zero, so that training starts at the base. Only A and B are trained. rsLoRA
(Kalajdzievski 2023, arXiv:2312.03732) scales by alpha / √rank, which keeps the update's size the same at any rank.
DoRA adds a learned length to each output row; see ``effects.LowRank``. LoRA+ (Hayou et al. 2024, arXiv:2402.12354)
gives B a higher learning rate than A, since a rate that suits A is too low for B in wide models.

Initializations that change the base's weights (PiSSA and its kin) are left out: the base is shared.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

import torch
from pydantic import Field

from tunescope.base import Base
from tunescope.methods.effects import Effect, LowRank
from tunescope.methods.method import SiteMethod, by_site, check_by_site
from tunescope.methods.space import Between, OneOf
from tunescope.settings import MOST


class LoRA(SiteMethod):
    """Low-rank adaptation."""

    name: ClassVar[str] = "lora"
    learning_rate: ClassVar[float] = 1e-3
    rates: ClassVar[Between | None] = Between(1e-4, 1e-2)
    effect: ClassVar[type[Effect] | None] = LowRank

    rank: Annotated[int, OneOf(8, 32)] = Field(8, gt=0, le=MOST)
    """Rank of the change. 8 is the paper's choice for most of its tables."""
    alpha: float = Field(16.0, gt=0)
    """The change is scaled by alpha / rank."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Chance that an input feature is left out while training."""
    rslora: bool = False
    """Scale by alpha / sqrt(rank) instead, so that larger ranks learn as fast."""
    dora: bool = False
    """Learn the length of each output row beside its direction (DoRA)."""
    targets: Annotated[tuple[str, ...], OneOf(("q", "v"), ("all-linear",))] = ("q", "v")
    """Sites, comma-separated: names (q k v o gate up down), all-linear, or layer.name with wildcards (0.q, 1?.*)."""
    rank_pattern: dict[str, Annotated[int, Field(gt=0, le=MOST)]] = Field(default_factory=dict)
    """Other ranks for some sites, as site=rank: down=4,0.*=16. Of several that match, the last counts."""
    alpha_pattern: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    """Other alphas for some sites, as site=alpha."""
    plus_ratio: float = Field(1.0, gt=0)
    """LoRA+: B learns at this multiple of the learning rate. Its paper suggests 16."""

    def effects(self, base: Base, generator: torch.Generator, labels: Sequence[str] | None = None) -> dict[str, Effect]:
        """One ``LowRank`` a target, with B zero.

        Raises:
            UnknownNameError: a target or a pattern that matches no site.
        """
        sites = self.sites(base)
        check_by_site("rank_pattern", self.rank_pattern, sites)
        check_by_site("alpha_pattern", self.alpha_pattern, sites)
        made: dict[str, Effect] = {}
        for site in sites:
            effect = LowRank(
                site,
                by_site(self.rank_pattern, self.rank, site),
                by_site(self.alpha_pattern, self.alpha, site),
                rank_stabilized=self.rslora,
                dropout=self.dropout,
                dora=self.dora,
            )
            effect.initialize(generator)
            made[f"{site.key}.{effect.kind}"] = effect
        return made

    def rate_of(self, parameter: str) -> float:
        """LoRA+'s ratio for B."""
        return self.plus_ratio if parameter.endswith(".B") else 1.0
