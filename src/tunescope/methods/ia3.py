"""IA3: learned vectors that amplify or inhibit activations (Liu et al. 2022, arXiv:2205.05638).

Against the plain transformer, in every layer:

    K = W_k x   becomes   K = l_k ⊙ (W_k x)
    V = W_v x   becomes   V = l_v ⊙ (W_v x)
    y = W_down f(x)   becomes   y = W_down (l_ff ⊙ f(x))

with l_k, l_v [key-value heads · head dimension] and l_ff [intermediate] trained, and all ones at the start (equations
in section 3.3). Under grouped-query attention the key and value vectors have the size of the key-value heads. A bias is
scaled with its output. Since l ⊙ (W x + b) = (l ⊙ W) x + l ⊙ b, it can be merged exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch

from tunescope.base import Base
from tunescope.errors import TrainingError
from tunescope.methods.effects import Effect, Scale
from tunescope.methods.method import SiteMethod, by_site, check_by_site
from tunescope.methods.space import Between


class IA3(SiteMethod):
    """IA3."""

    name: ClassVar[str] = "ia3"
    learning_rate: ClassVar[float] = 1e-2
    rates: ClassVar[Between | None] = Between(1e-3, 1e-1)
    effect: ClassVar[type[Effect] | None] = Scale

    targets: tuple[str, ...] = ("k", "v", "down")
    """Sites, comma-separated: names (q k v o gate up down), all-linear, or layer.name with wildcards (0.q, 1?.*)."""
    feedforward: tuple[str, ...] = ("down",)
    """Those of the targets whose input is scaled instead of their output."""

    def effects(self, base: Base, generator: torch.Generator, labels: Sequence[str] | None = None) -> dict[str, Effect]:
        """One ``Scale`` a target, of ones.

        Raises:
            UnknownNameError: a target or an entry of ``feedforward`` that matches no site.
            TrainingError: the input of a site that shares its module with others.
        """
        sites, on_input = self.sites(base), dict.fromkeys(self.feedforward, True)
        check_by_site("feedforward", on_input, sites)
        made: dict[str, Effect] = {}
        for site in sites:
            where = "input" if by_site(on_input, False, site) else "output"
            if where == "input" and site.part is not None:
                raise TrainingError(
                    f"The input of {site.key} cannot be scaled alone: in this base it is computed together with "
                    f"others, by {site.path}. Leave {site.name} out of feedforward."
                )
            made[f"{site.key}.scale"] = Scale(site, where)
        return made
