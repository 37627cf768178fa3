"""Adapters: small bottleneck networks inside the layers (Houlsby et al. 2019, arXiv:1902.00751).

Against the plain transformer, where a block adds to the residual stream:

    x + block(x)   becomes   x + y + U act(D y + b) + c   with y = block(x)

with D [bottleneck, hidden], U [hidden, bottleneck] and the biases b, c trained. U and c begin as zero, so that training
starts at the base. Two placements:

* ``houlsby``: after the attention and after the feed-forward block of every layer;
* ``pfeiffer``: after the feed-forward block only (Pfeiffer et al. 2021, arXiv:2005.00247), half the size and nearly as
  good.

Being a network of its own in each layer it cannot be merged into the weights, and it makes every token a little slower.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, model_validator

from tunescope.base import Base
from tunescope.methods.effects import Bottleneck, Effect
from tunescope.methods.method import Method
from tunescope.methods.space import Between, OneOf
from tunescope.settings import MOST

_PLACES = {"pfeiffer": ("mlp_out",), "houlsby": ("attention_out", "mlp_out")}
_REDUCTION = 16.0


class Adapter(Method):
    """Bottleneck adapters."""

    name: ClassVar[str] = "adapter"
    learning_rate: ClassVar[float] = 1e-3
    rates: ClassVar[Between | None] = Between(1e-4, 1e-2)
    effect: ClassVar[type[Effect] | None] = Bottleneck

    placement: Annotated[Literal["pfeiffer", "houlsby"], OneOf("pfeiffer", "houlsby")] = "pfeiffer"
    """After the feed-forward block only (pfeiffer), or after attention too (houlsby)."""
    bottleneck: int | None = Field(None, gt=0, le=MOST)
    """Width of the adapter. By default the hidden size divided by the reduction factor."""
    reduction_factor: float | None = Field(None, ge=1)
    """Hidden size over the adapter's width; 16 when neither is given."""
    activation: Literal["relu", "gelu", "silu", "tanh"] = "relu"
    """The function between the two linear maps."""
    layers: tuple[int, ...] | None = None
    """Only these layers, counted from 0; all by default."""

    @model_validator(mode="after")
    def _one_size(self) -> Adapter:
        if self.bottleneck is not None and self.reduction_factor is not None:
            raise ValueError("bottleneck and reduction_factor say the same thing: give one of them")
        if self.layers == ():
            raise ValueError("layers must name at least one layer, or nothing would be trained")
        return self

    def width(self, hidden: int) -> int:
        """Width of the bottleneck in a model of this hidden size; at least one."""
        return self.bottleneck or max(int(hidden / (self.reduction_factor or _REDUCTION)), 1)

    def effects(self, base: Base, generator: torch.Generator, labels: Sequence[str] | None = None) -> dict[str, Effect]:
        """One ``Bottleneck`` a place, with U zero.

        Raises:
            BaseModelError: a layer that the base does not have.
        """
        made: dict[str, Effect] = {}
        for site in base.sites.select(_PLACES[self.placement], self.layers):
            effect = Bottleneck(site, self.width(site.out_features), self.activation)
            effect.initialize(generator)
            made[f"{site.key}.{effect.kind}"] = effect
        return made
