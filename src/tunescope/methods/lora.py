"""LoRA: a low-rank change of chosen linear maps (Hu et al. 2021, arXiv:2106.09685).

Against the plain transformer, at each target:

    y = W x   becomes   y = W x + (alpha / rank) · B A x

with A [rank, in] random and B [out, rank] zero, so that training starts at the base. Only A and B are trained. rsLoRA
(Kalajdzievski 2023, arXiv:2312.03732) scales by alpha / √rank, which keeps the update's size the same at any rank.
DoRA adds a learned length to each output row; see ``effects.LowRank``.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field

from tunescope.base import Base
from tunescope.methods.effects import Effect, LowRank
from tunescope.methods.method import SiteMethod


class LoRA(SiteMethod):
    """Low-rank adaptation."""

    name: ClassVar[str] = "lora"
    learning_rate: ClassVar[float] = 1e-3

    rank: int = Field(8, gt=0)
    """Rank of the change. 8 is the paper's choice for most of its tables."""
    alpha: float = Field(16.0, gt=0)
    """The change is scaled by alpha / rank."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Chance that an input feature is left out while training."""
    rslora: bool = False
    """Scale by alpha / sqrt(rank) instead, so that larger ranks learn as fast."""
    dora: bool = False
    """Learn the length of each output row beside its direction (DoRA)."""
    targets: tuple[str, ...] = ("q", "v")
    """Names of sites, comma-separated: q k v o gate up down, or all-linear."""

    def effects(self, base: Base, generator: torch.Generator) -> dict[str, Effect]:
        """One ``LowRank`` a target, with B zero."""
        made: dict[str, Effect] = {}
        for site in self.sites(base):
            effect = LowRank(
                site, self.rank, self.alpha, rank_stabilized=self.rslora, dropout=self.dropout, dora=self.dora
            )
            effect.initialize(generator)
            made[site.key] = effect
        return made
