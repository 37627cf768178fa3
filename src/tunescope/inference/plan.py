"""The row effects of one batch: the last step between a customization and its rows (see ``compiled``).

A mask [rows, 1, ranks] selects of A x what belongs to the row, and each row's scales are gathered. Every layer of every
step then only computes: no per-row branching remains inside a layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property

import torch

from tunescope.base import Base
from tunescope.base.sites import Site
from tunescope.inference.packed_linear import Product
from tunescope.inference.stack import Stack, StackedBottleneck


@dataclass(frozen=True)
class LinearRows:
    """A ``StackedLinear`` for the rows of a batch: ``mask`` [rows, 1, ranks], boolean; vectors [rows, 1, features]."""

    reduce: Product | None
    expand: Product | None
    mask: torch.Tensor | None
    scale: torch.Tensor | None
    shift: torch.Tensor | None
    input_scale: torch.Tensor | None

    def before(self, given: torch.Tensor) -> torch.Tensor:
        """The input [rows, length, in] that the linear map reads."""
        return given if self.input_scale is None else (given * self.input_scale).to(given.dtype)

    def after(self, given: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """The output [rows, length, out], from what ``before`` gave and what the linear map made of it."""
        dtype = output.dtype
        if self.scale is not None:
            output = (output * self.scale).to(dtype)
        if self.shift is not None:
            output = (output + self.shift).to(dtype)
        if self.reduce is not None and self.expand is not None and self.mask is not None:
            output = output + self.expand(torch.where(self.mask, self.reduce(given), 0))
        return output


@dataclass(frozen=True)
class BottleneckRows:
    """A block's adapters for the rows of a batch: levels that act one after the other."""

    levels: tuple[BottleneckLevel, ...]

    def after(self, _given: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """What the block returns [rows, length, hidden], with the rows' adapters added."""
        for level in self.levels:
            output = level.after(output)
        return output


@dataclass(frozen=True)
class BottleneckLevel:
    """A ``StackedBottleneck`` for the rows of a batch: ``mask`` [rows, 1, widths], boolean; ``up_bias``
    [rows, 1, hidden]."""

    stacked: StackedBottleneck
    mask: torch.Tensor
    up_bias: torch.Tensor

    def after(self, output: torch.Tensor) -> torch.Tensor:
        """[rows, length, hidden] with these adapters added."""
        stacked = self.stacked
        low = stacked.down(output)
        parts = low.split([width for _, width in stacked.activations], dim=-1)
        active = [activation(part) for (activation, _), part in zip(stacked.activations, parts, strict=True)]
        low = torch.where(self.mask, active[0] if len(active) == 1 else torch.cat(active, dim=-1), 0)
        return output + (stacked.up(low) + self.up_bias)


class Plan:
    """The row effects of one batch.

    Args:
        stack: holds the rows' customizations.
        numbers: each row's customization in the stack; 0 is the base.
    """

    def __init__(self, stack: Stack, numbers: Sequence[int], base: Base) -> None:
        self.stack, self.numbers = stack, tuple(numbers)
        self.members = [stack.members[number - 1] for number in sorted(set(numbers)) if number]
        self._rows = torch.tensor(self.numbers, device=base.device)
        self._masks: dict[tuple[int, ...], torch.Tensor | None] = {}
        self._linear: dict[tuple[Site, ...], LinearRows | None] = {}
        self._bottleneck: dict[Site, BottleneckRows | None] = {}
        self._base = base
        self._of_rows: dict[tuple[int, int], Plan] = {}

    @cached_property
    def sites(self) -> frozenset[str]:
        """Where its effects act: site keys, and ``embedding`` for virtual tokens."""
        keys = {key for member in self.members for key in (*member.linear, *member.bottleneck)}
        return frozenset(keys | {"embedding"} if any(m.table is not None for m in self.members) else keys)

    def of_rows(self, rows: slice) -> Plan:
        """The plan of some of the rows; the same one every time."""
        key = (rows.start, rows.stop)
        if key not in self._of_rows:
            self._of_rows[key] = Plan(self.stack, self.numbers[rows], self._base)
        return self._of_rows[key]

    def virtual(self, ids: torch.Tensor) -> torch.Tensor:
        """Token ids [rows, length] with each row's virtual tokens as negative ids into the stack's ``table``."""
        if self.stack.table is None:
            return ids
        offsets = torch.tensor([self.stack.offsets[number] for number in self.numbers], device=ids.device)
        return torch.where(ids < 0, ids - offsets[:, None], ids)

    def linear(self, sites: tuple[Site, ...]) -> LinearRows | None:
        """What happens at ``sites``, which read the same input; None where no row has an effect there."""
        if not self.members:
            return None
        if sites not in self._linear:
            self._linear[sites] = self._linear_rows(sites)
        return self._linear[sites]

    def bottleneck(self, site: Site) -> BottleneckRows | None:
        """What is added at ``site``; None where no row has an adapter there."""
        if not self.members:
            return None
        if site not in self._bottleneck:
            masks = [(stacked, self._mask(stacked.index)) for stacked in self.stack.bottleneck(site)]
            levels = tuple(
                BottleneckLevel(stacked, mask, stacked.up_bias[self._rows][:, None])
                for stacked, mask in masks
                if mask is not None  # a member of this batch owns a column
            )
            self._bottleneck[site] = BottleneckRows(levels) if levels else None
        return self._bottleneck[site]

    def _linear_rows(self, sites: tuple[Site, ...]) -> LinearRows | None:
        if not any(site.key in member.linear for site in sites for member in self.members):
            return None
        stacked = self.stack.linear(sites)
        if stacked is None:
            return None
        mask = self._mask(stacked.index)
        vectors = {
            field.name: None if vector is None else vector[self._rows][:, None]
            for field in fields(stacked)
            if field.name in ("scale", "shift", "input_scale")
            for vector in (getattr(stacked, field.name),)
        }
        low_rank = (None, None) if mask is None else (stacked.reduce, stacked.expand)
        return LinearRows(*low_rank, mask, **vectors)

    def _mask(self, index: tuple[int, ...]) -> torch.Tensor | None:
        """[rows, 1, columns], True where the column is the row's own; None where no column belongs to these rows.

        It selects and does not multiply: what another customization makes of a row may overflow, and inf · 0 is NaN.
        """
        if index not in self._masks:
            own = torch.tensor(self.numbers)[:, None] == torch.tensor(index)
            self._masks[index] = own[:, None].to(self._rows.device) if index and bool(own.any()) else None
        return self._masks[index]
