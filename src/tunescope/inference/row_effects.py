"""Customizations as row effects: what lets rows of one batch run under different customizations.

Three steps, each done as rarely as possible:

1. ``Compiled``: once a customization is loaded. Whatever its method was, at a linear map it comes down to

       y = s ⊙ (W (u ⊙ x) + b) + t + B A (u ⊙ x)

   with u and s from IA3, A and B from LoRA, and s, t and B from DoRA, whose re-scaling of W x is a scale too.
2. ``Stack``: once for each set of customizations that run together. Their A lie below each other, their B side by side,
   so that one product serves them all whatever their ranks; index 0 of every scale is the identity, the base.
3. ``Plan``: once for each batch of rows. A mask [rows, 1, ranks] selects of A x what belongs to the row, and each row's
   scales are gathered. Every layer of every step then only computes, without a look at who is who.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import NamedTuple

import torch
from torch.nn import functional

from tunescope.base import Base
from tunescope.base.device import dtype_name
from tunescope.base.sites import Site
from tunescope.errors import EngineError
from tunescope.inference.products import Product, packs, product
from tunescope.methods import Customization
from tunescope.methods.effects import ACTIVATIONS, Bottleneck, LowRank, Prefix, Scale


class LinearEffect(NamedTuple):
    """What a customization does at one linear map; None where it does nothing of the kind.

    ``A`` [rank, in] and ``B`` [out, rank] in the base's precision; ``scale`` [out], ``shift`` [out] and ``input_scale``
    [in] in float32.
    """

    A: torch.Tensor | None = None
    B: torch.Tensor | None = None
    scale: torch.Tensor | None = None
    shift: torch.Tensor | None = None
    input_scale: torch.Tensor | None = None


class BottleneckEffect(NamedTuple):
    """An adapter's tensors, in the base's precision: ``down`` [b, hidden], ``up`` [hidden, b] and their biases."""

    down: torch.Tensor
    down_bias: torch.Tensor
    up: torch.Tensor
    up_bias: torch.Tensor
    activation: Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, eq=False)
class Compiled:
    """A customization ready to share a batch. Compared by identity: another load is another one.

    Attributes:
        linear: by site key.
        bottleneck: by site key.
        table: virtual tokens [virtual_tokens, hidden], or None.
    """

    linear: dict[str, LinearEffect]
    bottleneck: dict[str, BottleneckEffect]
    table: torch.Tensor | None

    @classmethod
    def of(cls, customization: Customization, base: Base) -> Compiled:
        """Compile for ``base``. The tensors are copies: training may go on without changing what is served.

        Raises:
            EngineError: an effect that no batch can share, or tensors that are not finite.
        """
        linear: dict[str, LinearEffect] = {}
        bottleneck: dict[str, BottleneckEffect] = {}
        table = None
        with torch.no_grad():
            for key, effect in customization.effects.items():
                place = key.rpartition(".")[0]
                if effect.where == "head":
                    continue  # a reward head reads hidden states and changes none
                match effect:
                    case Prefix():
                        table = effect.table().detach().to(base.device, base.dtype, copy=True)
                    case LowRank():
                        linear[place] = _then_low_rank(linear.get(place, LinearEffect()), effect, base.sites[place])
                    case Scale():
                        linear[place] = _then_scale(linear.get(place, LinearEffect()), effect)
                    case Bottleneck():
                        parts = (effect.down.weight, effect.down.bias, effect.up.weight, effect.up.bias)
                        down, down_bias, up, up_bias = (
                            part.detach().to(base.device, base.dtype, copy=True) for part in parts
                        )
                        bottleneck[place] = BottleneckEffect(down, down_bias, up, up_bias, effect.activation)
                    case _:
                        raise EngineError(f"{type(effect).__name__} at {place} is no effect that rows can share.")
            linear = {place: _at_rest(effect, base) for place, effect in linear.items()}
        compiled = cls(linear, bottleneck, table)
        if broken := compiled._not_finite():
            # The matmuls of a stack hold every customization's columns: inf · 0 would reach the rows of the others.
            raise EngineError(
                f"Its tensors at {broken} hold values that are not finite in {dtype_name(base.dtype)}. Train it again."
            )
        return compiled

    @property
    def nbytes(self) -> int:
        """Memory of its tensors."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self._tensors())

    def scales_inputs(self, site: str) -> bool:
        """Whether it scales the input of a site of this name in some layer."""
        return any(
            effect.input_scale is not None for key, effect in self.linear.items() if key.rpartition(".")[2] == site
        )

    def _not_finite(self) -> str | None:
        """Where a tensor holds NaN or infinity: a site, or ``embedding``; None where none does."""
        return next((place for place, tensor in self._placed() if not bool(torch.isfinite(tensor).all())), None)

    def _tensors(self) -> list[torch.Tensor]:
        return [tensor for _, tensor in self._placed()]

    def _placed(self) -> list[tuple[str, torch.Tensor]]:
        parts = [*self.linear.items(), *self.bottleneck.items()]
        found = [(site, tensor) for site, part in parts for tensor in part if isinstance(tensor, torch.Tensor)]
        return found if self.table is None else [*found, ("embedding", self.table)]


def _then_low_rank(before: LinearEffect, effect: LowRank, site: Site) -> LinearEffect:
    A, B = effect.A.detach().float(), effect.B.detach().float() * effect.scaling
    scale, shift = before.scale, before.shift
    if effect.magnitude is not None:
        stretch = effect.magnitude.detach().float() / effect.direction_norm()
        B = B * stretch[:, None]
        scale = stretch if scale is None else scale * stretch
        shift = None if shift is None else shift * stretch
        if site.bias is not None:  # DoRA adds the bias after: stretch · (y - b) + b
            moved = (1 - stretch) * site.bias.float()
            shift = moved if shift is None else shift + moved
    return before._replace(A=A, B=B, scale=scale, shift=shift)


def _then_scale(before: LinearEffect, effect: Scale) -> LinearEffect:
    vector = effect.vector.detach().float()
    if effect.where == "input":
        return before._replace(input_scale=vector)
    return before._replace(
        B=None if before.B is None else before.B * vector[:, None],
        scale=vector if before.scale is None else before.scale * vector,
        shift=None if before.shift is None else before.shift * vector,
    )


def _at_rest(effect: LinearEffect, base: Base) -> LinearEffect:
    def moved(tensor: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
        return None if tensor is None else tensor.to(base.device, dtype, copy=True)

    return LinearEffect(
        moved(effect.A, base.dtype),
        moved(effect.B, base.dtype),
        *(moved(tensor, torch.float32) for tensor in effect[2:]),
    )


@dataclass(frozen=True)
class StackedLinear:
    """A stack's effects at one or more linear maps that read the same input; their outputs stand side by side.

    ``reduce`` is the product with A [ranks, in], ``expand`` that with B [out, ranks]; ``owner`` is each rank's
    customization. ``scale`` and ``shift`` [customizations + 1, out], ``input_scale`` [customizations + 1, in].
    """

    reduce: Product | None
    expand: Product | None
    owner: tuple[int, ...]
    scale: torch.Tensor | None
    shift: torch.Tensor | None
    input_scale: torch.Tensor | None


@dataclass(frozen=True)
class StackedBottleneck:
    """A stack's adapters at one block: as ``StackedLinear``, with the columns of each activation together."""

    down: Product
    up: Product
    up_bias: torch.Tensor
    owner: tuple[int, ...]
    activations: tuple[tuple[Callable[[torch.Tensor], torch.Tensor], int], ...]


class Stack:
    """Customizations that run together. Number 0 is the base, ``members[i]`` has number i + 1."""

    def __init__(self, members: Sequence[Compiled], base: Base) -> None:
        self.members = tuple(members)
        self._numbers = {member: number for number, member in enumerate(self.members, start=1)}
        self._base, self._pack = base, packs(base)
        self._linear: dict[tuple[Site, ...], StackedLinear | None] = {}
        self._bottleneck: dict[Site, StackedBottleneck | None] = {}
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

    def bottleneck(self, site: Site) -> StackedBottleneck | None:
        """The adapters at ``site``; None where nobody has one."""
        if site not in self._bottleneck:
            self._bottleneck[site] = self._stack_bottleneck(site)
        return self._bottleneck[site]

    def _stack_linear(self, sites: tuple[Site, ...]) -> StackedLinear | None:
        begin, width = 0, sum(site.out_features for site in sites)
        above: list[torch.Tensor] = []
        beside: list[torch.Tensor] = []
        owner: list[int] = []
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
                    owner += [number] * len(effect.A)
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
            tuple(owner),
            vectors.get("scale"),
            vectors.get("shift"),
            vectors.get("input_scale"),
        )

    def _vectors(self, made: dict[str, torch.Tensor], name: str, width: int, identity: float) -> torch.Tensor:
        if name not in made:
            made[name] = torch.full((len(self.members) + 1, width), identity, device=self._base.device)
        return made[name]

    def _stack_bottleneck(self, site: Site) -> StackedBottleneck | None:
        found = [
            (number, member.bottleneck[site.key])
            for number, member in enumerate(self.members, start=1)
            if site.key in member.bottleneck
        ]
        if not found:
            return None
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
    """A ``StackedBottleneck`` for the rows of a batch: ``mask`` [rows, 1, widths], boolean; ``up_bias``
    [rows, 1, hidden]."""

    stacked: StackedBottleneck
    mask: torch.Tensor
    up_bias: torch.Tensor

    def after(self, _given: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """What the block returns [rows, length, hidden], with the rows' adapters added."""
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
            stacked = self.stack.bottleneck(site) if any(site.key in m.bottleneck for m in self.members) else None
            if stacked is None:
                self._bottleneck[site] = None
            else:
                mask = self._mask(stacked.owner)
                assert mask is not None  # a member of this batch owns a column
                self._bottleneck[site] = BottleneckRows(stacked, mask, stacked.up_bias[self._rows][:, None])
        return self._bottleneck[site]

    def _linear_rows(self, sites: tuple[Site, ...]) -> LinearRows | None:
        if not any(site.key in member.linear for site in sites for member in self.members):
            return None
        stacked = self.stack.linear(sites)
        if stacked is None:
            return None
        mask = self._mask(stacked.owner)
        vectors = {
            field.name: None if vector is None else vector[self._rows][:, None]
            for field in fields(stacked)
            if field.name in ("scale", "shift", "input_scale")
            for vector in (getattr(stacked, field.name),)
        }
        low_rank = (None, None) if mask is None else (stacked.reduce, stacked.expand)
        return LinearRows(*low_rank, mask, **vectors)

    def _mask(self, owner: tuple[int, ...]) -> torch.Tensor | None:
        """[rows, 1, columns], True where the column is the row's own; None where no column belongs to these rows.

        It selects and does not multiply: what another customization makes of a row may overflow, and inf · 0 is NaN.
        """
        if owner not in self._masks:
            own = torch.tensor(self.numbers)[:, None] == torch.tensor(owner)
            self._masks[owner] = own[:, None].to(self._rows.device) if owner and bool(own.any()) else None
        return self._masks[owner]
