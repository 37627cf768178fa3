"""A customization as row effects: the first of three steps that let rows of one batch run under different ones.

1. ``Compiled`` (here): once a customization is loaded. Whatever its method was, at a linear map it comes down to

       y = s ⊙ (W (u ⊙ x) + b) + t + B A (u ⊙ x)

   with u and s from IA3, A and B from LoRA, and s, t and B from DoRA, whose re-scaling of W x is a scale too.
2. ``Stack`` (``stack.py``): once for each set of customizations that run together.
3. ``Plan`` (``plan.py``): once for each batch of rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch

from tunescope.base import Base
from tunescope.base.device import dtype_name
from tunescope.errors import EngineError
from tunescope.methods import Customization
from tunescope.methods.effects import Bottleneck, LowRank, Scale, SoftPrompt
from tunescope.objectives.heads import Head


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
        bottleneck: by site key; adapters that act one after the other.
        table: virtual tokens [virtual_tokens, hidden], or None.
        heads: by name; they change nothing of what the base computes.
    """

    linear: dict[str, LinearEffect]
    bottleneck: dict[str, tuple[BottleneckEffect, ...]]
    table: torch.Tensor | None
    heads: dict[str, Head]

    @classmethod
    def of(cls, customization: Customization, base: Base) -> Compiled:
        """Compile for ``base``, what it starts from included: effects at one site are folded in the order they act in.

        The tensors are copies: training may go on without changing what is served.

        Raises:
            EngineError: an effect that no batch can share, or tensors that are not finite.
        """
        linear: dict[str, LinearEffect] = {}
        bottleneck: dict[str, tuple[BottleneckEffect, ...]] = {}
        tables: list[torch.Tensor] = []
        heads: dict[str, Head] = {}
        with torch.no_grad():
            for key, effect in (item for layer in customization.layers for item in layer.effects.items()):
                place = key.rpartition(".")[0]
                if effect.where == "head" and key not in customization.effects:
                    continue  # of what it starts from: without the objective that brought it, it has no use
                match effect:
                    case Head():
                        heads[key.removeprefix("head.")] = effect.at_rest().to(base.device)
                    case SoftPrompt():
                        tables.append(effect.table().detach().to(base.device, base.dtype, copy=True))
                    case LowRank():
                        linear[place] = _then_low_rank(linear.get(place, LinearEffect()), effect)
                    case Scale():
                        linear[place] = _then_scale(linear.get(place, LinearEffect()), effect)
                    case Bottleneck():
                        parts = (effect.down.weight, effect.down.bias, effect.up.weight, effect.up.bias)
                        down, down_bias, up, up_bias = (
                            part.detach().to(base.device, base.dtype, copy=True) for part in parts
                        )
                        own = BottleneckEffect(down, down_bias, up, up_bias, effect.activation)
                        bottleneck[place] = (*bottleneck.get(place, ()), own)
                    case _:
                        raise EngineError(f"{type(effect).__name__} at {place} is no effect that rows can share.")
            linear = {place: _at_rest(effect, base) for place, effect in linear.items()}
        compiled = cls(linear, bottleneck, torch.cat(tables) if tables else None, heads)
        if broken := compiled._not_finite():
            # The matmuls of a stack hold every customization's columns: inf · 0 would reach the rows of the others.
            raise EngineError(
                f"Its tensors at {broken} hold values that are not finite in {dtype_name(base.dtype)}. Train it again."
            )
        return compiled

    def scaled(self, scale: float) -> Compiled | None:
        """The same, acting ``scale`` times as strongly: B and an adapter's second map are multiplied by it, a scale l
        becomes 1 + scale · (l - 1). None at 0, where nothing acts.

        Raises:
            EngineError: virtual tokens, and DoRA (or IA3 over a LoRA), whose effects are no sums.
        """
        if self.table is not None:
            raise EngineError("Virtual tokens have no scale: leave scale out.")
        if any(effect.B is not None and effect.scale is not None for effect in self.linear.values()):
            raise EngineError("What it adds is stretched as well (DoRA, or IA3 over a LoRA), so it has no scale.")
        if scale == 0:
            return None
        linear = {
            site: effect._replace(
                B=None if effect.B is None else effect.B * scale,
                scale=None if effect.scale is None else 1 + scale * (effect.scale - 1),
                shift=None if effect.shift is None else effect.shift * scale,
                input_scale=None if effect.input_scale is None else 1 + scale * (effect.input_scale - 1),
            )
            for site, effect in self.linear.items()
        }
        bottleneck = {
            site: tuple(level._replace(up=level.up * scale, up_bias=level.up_bias * scale) for level in levels)
            for site, levels in self.bottleneck.items()
        }
        scaled = Compiled(linear, bottleneck, None, self.heads)
        if scaled._not_finite():
            raise EngineError(f"With a scale of {scale:g} its tensors are no finite numbers: take a smaller one.")
        return scaled

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
        """Where a tensor holds NaN or infinity: a site, a head, or ``embedding``; None where none does."""
        return next((place for place, tensor in self._placed() if not bool(torch.isfinite(tensor).all())), None)

    def _tensors(self) -> list[torch.Tensor]:
        return [tensor for _, tensor in self._placed()]

    def _placed(self) -> list[tuple[str, torch.Tensor]]:
        parts: list[tuple[str, LinearEffect | BottleneckEffect]] = list(self.linear.items())
        parts += [(site, level) for site, levels in self.bottleneck.items() for level in levels]
        found = [(site, tensor) for site, part in parts for tensor in part if isinstance(tensor, torch.Tensor)]
        found += [(f"head.{name}", tensor) for name, head in self.heads.items() for tensor in head.parameters()]
        return found if self.table is None else [*found, ("embedding", self.table)]


def _then_low_rank(before: LinearEffect, effect: LowRank) -> LinearEffect:
    A, B = effect.A.detach().float(), effect.B.detach().float() * effect.scaling
    if before.A is not None and before.B is not None:
        A, B = torch.cat([before.A, A]), torch.cat([before.B, B], dim=1)
    scale, shift = before.scale, before.shift
    if effect.magnitude is not None:
        stretch = effect.magnitude.detach().float() / effect.direction_norm()
        B = B * stretch[:, None]
        scale = stretch if scale is None else scale * stretch
        shift = None if shift is None else shift * stretch
        if effect.bias is not None:  # DoRA adds the bias after: stretch · (y - b) + b
            moved = (1 - stretch) * effect.bias.float()
            shift = moved if shift is None else shift + moved
    return before._replace(A=A, B=B, scale=scale, shift=shift)


def _then_scale(before: LinearEffect, effect: Scale) -> LinearEffect:
    vector = effect.vector.detach().float()
    if effect.where == "input":
        return before._replace(input_scale=vector if before.input_scale is None else before.input_scale * vector)
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
