"""Customizations that run together, stacked: the second step between a customization and its rows (see ``compiled``).

Their A lie below each other, their B side by side, so that one product serves them all whatever their ranks; index 0 of
every scale is the identity, the base.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from tunescope.base import Base
from tunescope.base.sites import Site
from tunescope.inference.compiled import Compiled
from tunescope.inference.packed_linear import Product, packs, product
from tunescope.methods.effects import ACTIVATIONS


@dataclass(frozen=True)
class StackedLinear:
    """A stack's effects at one or more linear maps that read the same input; their outputs stand side by side.

    ``reduce`` is the product with A [ranks, in], ``expand`` that with B [out, ranks]; ``index`` is each rank's
    customization. ``scale`` and ``shift`` [customizations + 1, out], ``input_scale`` [customizations + 1, in].
    """

    reduce: Product | None
    expand: Product | None
    index: tuple[int, ...]
    scale: torch.Tensor | None
    shift: torch.Tensor | None
    input_scale: torch.Tensor | None


@dataclass(frozen=True)
class StackedBottleneck:
    """A stack's adapters at one block: as ``StackedLinear``, with the columns of each activation together."""

    down: Product
    up: Product
    up_bias: torch.Tensor
    index: tuple[int, ...]
    activations: tuple[tuple[Callable[[torch.Tensor], torch.Tensor], int], ...]


class Stack:
    """Customizations that run together. Number 0 is the base, ``members[i]`` has number i + 1."""

    def __init__(self, members: Sequence[Compiled], base: Base) -> None:
        self.members = tuple(members)
        self._numbers = {member: number for number, member in enumerate(self.members, start=1)}
        self._base, self._pack = base, packs(base)
        self._linear: dict[tuple[Site, ...], StackedLinear | None] = {}
        self._bottleneck: dict[Site, tuple[StackedBottleneck, ...]] = {}
        tables = [member.table for member in self.members if member.table is not None]
        self.table = torch.cat(tables) if tables else None
        self.offsets = [0]
        ahead = 0
        for member in self.members:
            self.offsets.append(ahead)
            ahead += 0 if member.table is None else len(member.table)

    def number(self, member: Compiled | None) -> int | None:
        """Number of a customization in this stack; None where it is not in it."""
        return 0 if member is None else self._numbers.get(member)

    def linear(self, sites: tuple[Site, ...]) -> StackedLinear | None:
        """The effects at ``sites``, which read the same input; None where nobody has one."""
        if sites not in self._linear:
            self._linear[sites] = self._stack_linear(sites)
        return self._linear[sites]

    def bottleneck(self, site: Site) -> tuple[StackedBottleneck, ...]:
        """The adapters at ``site``: everybody's first, everybody's second, and so on; none where nobody has one."""
        if site not in self._bottleneck:
            levels = max((len(member.bottleneck.get(site.key, ())) for member in self.members), default=0)
            self._bottleneck[site] = tuple(self._stack_bottleneck(site, level) for level in range(levels))
        return self._bottleneck[site]

    def _stack_linear(self, sites: tuple[Site, ...]) -> StackedLinear | None:
        begin, width = 0, sum(site.out_features for site in sites)
        above: list[torch.Tensor] = []
        beside: list[torch.Tensor] = []
        index: list[int] = []
        vectors: dict[str, torch.Tensor] = {}
        found = False
        for site in sites:
            end = begin + site.out_features
            for number, member in enumerate(self.members, start=1):
                effect = member.linear.get(site.key)
                if effect is None:
                    continue
                found = True
                if effect.A is not None and effect.B is not None:
                    above.append(effect.A)
                    beside.append(functional.pad(effect.B.T, (begin, width - end)))
                    index += [number] * len(effect.A)
                if effect.scale is not None:
                    self._vectors(vectors, "scale", width, 1.0)[number, begin:end] = effect.scale
                if effect.shift is not None:
                    self._vectors(vectors, "shift", width, 0.0)[number, begin:end] = effect.shift
                if effect.input_scale is not None:
                    assert len(sites) == 1  # each of several sites would read another input
                    self._vectors(vectors, "input_scale", site.in_features, 1.0)[number] = effect.input_scale
            begin = end
        if not found:
            return None
        return StackedLinear(
            product(torch.cat(above), None, self._pack) if above else None,
            product(torch.cat(beside).T.contiguous(), None, self._pack) if beside else None,
            tuple(index),
            vectors.get("scale"),
            vectors.get("shift"),
            vectors.get("input_scale"),
        )

    def _vectors(self, made: dict[str, torch.Tensor], name: str, width: int, identity: float) -> torch.Tensor:
        if name not in made:
            made[name] = torch.full((len(self.members) + 1, width), identity, device=self._base.device)
        return made[name]

    def _stack_bottleneck(self, site: Site, level: int) -> StackedBottleneck:
        found = [
            (number, levels[level])
            for number, member in enumerate(self.members, start=1)
            if len(levels := member.bottleneck.get(site.key, ())) > level
        ]
        order = list(ACTIVATIONS.values())
        found.sort(key=lambda each: order.index(each[1].activation))
        up_bias = found[0][1].up_bias.new_zeros(len(self.members) + 1, site.out_features)
        for number, effect in found:
            up_bias[number] = effect.up_bias
        widths = {
            activation: sum(len(effect.down) for _, effect in found if effect.activation is activation)
            for activation in order
        }
        return StackedBottleneck(
            product(
                torch.cat([effect.down for _, effect in found]),
                torch.cat([effect.down_bias for _, effect in found]),
                self._pack,
            ),
            product(torch.cat([effect.up for _, effect in found], dim=1).contiguous(), None, self._pack),
            up_bias,
            tuple(number for number, effect in found for _ in range(len(effect.down))),
            tuple((activation, width) for activation, width in widths.items() if width),
        )
