"""Customizations at work: their effects on hooks of a base's modules, for one step at a time.

Alone, a customization acts on every row of a batch. Several act together on rows of their own: at each site the rows of
each get that one's effects, and the frozen module computes all of them at once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from tunescope.base import Base
from tunescope.methods.effects import Effect, LowRank
from tunescope.methods.low_rank_terms import add_terms

if TYPE_CHECKING:
    from tunescope.methods.customization import Customization

# Each with the customization that it belongs to.
_Effects = Sequence[tuple["Customization", Effect]]
_Act = Callable[[Effect, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Share:
    """The part of a batch that is one customization's.

    Attributes:
        rows: the batch's rows.
        length: of each row the first so many positions; behind them is padding, which nothing reads.
    """

    rows: slice
    length: int


class Hooks:
    """The effects of some customizations on hooks of a base's modules. A context manager.

    The hooks stay as long as the context does, and act within ``alone`` and ``together`` only. At one site the effects
    of what a customization starts from act before its own.

    Args:
        base: whose modules carry the hooks.
        customizations: whose effects they are.
    """

    def __init__(self, base: Base, customizations: Sequence[Customization]) -> None:
        self._base, self._customizations = base, tuple(customizations)
        self._shares: Mapping[Customization, Share] = {}
        self._alone: Customization | None = None
        self._handles = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as handles:
            for handle in self._register():
                handles.callback(handle.remove)
            self._handles = handles.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._handles.close()

    @contextmanager
    def alone(self, customization: Customization) -> Iterator[None]:
        """Within this context the base computes as this customization, in this thread.

        Raises:
            BaseInUseError: something acts on the base already.
        """
        with self._base.use.acting(self, (customization,), customization.method.name):
            self._alone, self._shares = customization, {}
            yield

    @contextmanager
    def together(self, shares: Mapping[Customization, Share]) -> Iterator[None]:
        """Within this context each customization acts on its part of the batch, in this thread.

        Args:
            shares: in the order of the batch, all of whose rows belong to one or the other.

        Raises:
            BaseInUseError: something acts on the base already.
        """
        names = " beside ".join(each.method.name for each in shares)
        with self._base.use.acting(self, tuple(shares), names):
            self._alone, self._shares = None, shares
            yield

    def _register(self) -> Iterator[RemovableHandle]:
        """A hook for each side of each module that an effect acts on; registered in the order of the effects."""
        acts = functools.partial(self._base.use.acts, self)
        places: dict[tuple[str, str], list[tuple[Customization, Effect]]] = {}
        for customization in self._customizations:
            for layer in customization.layers:
                for key, effect in layer.effects.items():
                    if effect.where != "head":  # a head changes nothing of what the model computes
                        places.setdefault((key.rpartition(".")[0], effect.where), []).append((customization, effect))
        for (site, where), effects in places.items():
            if where == "embedding":
                yield from self._on_embedding()
            elif where == "input":
                yield self._base.sites[site].on_input(functools.partial(self._input, effects), acts)
            else:
                yield self._base.sites[site].on_output(functools.partial(self._output, effects), acts)

    def _output(self, effects: _Effects, given: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """What a module returns, with the effects."""
        acting = [(self._share(owner), effect) for owner, effect in effects if self._acts(owner)]
        if acting and all(isinstance(effect, LowRank) and effect.adds_only for _, effect in acting):
            terms = [effect.term(*share) for share, effect in acting if isinstance(effect, LowRank)]
            whole = (given, output) if self._alone is not None else (self._unfolded(given), self._unfolded(output))
            return add_terms(*whole, terms).view_as(output)
        return self._changed(effects, lambda effect, given, own: effect(given, own), given, output)

    def _input(self, effects: _Effects, given: torch.Tensor) -> torch.Tensor:
        """What a module is given, with the effects."""
        return self._changed(effects, lambda effect, _given, own: effect(own), given, given)

    def _changed(self, effects: _Effects, act: _Act, given: torch.Tensor, changed: torch.Tensor) -> torch.Tensor:
        """``changed``, a module's output or its input, after each customization's effects on its own part."""

        def after(customization: Customization, given: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
            for owner, effect in effects:
                if owner is customization:
                    own = act(effect, given, own)
            return own

        if self._alone is not None:
            return after(self._alone, given, changed)
        return self._whole([after(*part) for part in self._parts(given, changed)], changed)

    def _acts(self, customization: Customization) -> bool:
        return customization is self._alone if self._alone is not None else customization in self._shares

    def _share(self, customization: Customization) -> tuple[slice | None, int | None]:
        """The rows that are its part of the batch, and how many positions of each; None for all."""
        share = self._shares.get(customization)
        return (None, None) if share is None else (share.rows, share.length)

    def _parts(
        self, given: torch.Tensor, output: torch.Tensor
    ) -> Iterator[tuple[Customization, torch.Tensor, torch.Tensor]]:
        """Each customization with its part of the two tensors, [rows, length, features]."""
        # Split, not sliced: the gradient of a slice is padded with zeros to the whole, and added.
        sizes = [share.rows.stop - share.rows.start for share in self._shares.values()]
        given_parts, parts = self._unfolded(given).split(sizes), self._unfolded(output).split(sizes)
        for (customization, share), own_given, own in zip(self._shares.items(), given_parts, parts, strict=True):
            yield customization, own_given[:, : share.length], own[:, : share.length]

    def _unfolded(self, tensor: torch.Tensor) -> torch.Tensor:
        """[rows, length, features]; some models flatten rows and positions (OPT before its feed-forward maps)."""
        rows = max(share.rows.stop for share in self._shares.values())
        return tensor if tensor.dim() == 3 else tensor.view(rows, -1, tensor.shape[-1])

    def _whole(self, parts: Sequence[torch.Tensor], like: torch.Tensor) -> torch.Tensor:
        """The parts as one tensor again."""
        length = self._unfolded(like).shape[1]
        padded = [functional.pad(part, (0, 0, 0, length - part.shape[1])) for part in parts]
        return torch.cat(padded).view_as(like)

    def _on_embedding(self) -> Iterator[RemovableHandle]:
        """Have the embedding, but no copy of it, answer negative ids with virtual tokens: id -1 - i with row i."""
        embedding, virtual = self._base.embedding, list[torch.Tensor]()
        acts = functools.partial(self._base.use.acts, self)

        def before(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            if module is not embedding or not acts():
                return args
            virtual[:] = [args[0]]
            return (args[0].clamp(min=0), *args[1:])

        def after(module: nn.Module, _args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
            if module is not embedding or not acts():
                return output
            ids = virtual.pop()
            mask = ids < 0
            rows = self._virtual_rows(ids)
            return output if rows is None else output.masked_scatter(mask[..., None], rows.to(output.dtype))

        yield embedding.register_forward_pre_hook(before)
        yield embedding.register_forward_hook(after)

    def _virtual_rows(self, ids: torch.Tensor) -> torch.Tensor | None:
        """The embeddings of all negative ids of [rows, length], in order, as [virtual tokens, hidden]; None of none."""
        if self._alone is not None:
            owned = [(self._alone, ids[ids < 0])]
        else:
            parts = ((customization, ids[share.rows]) for customization, share in self._shares.items())
            owned = [(customization, own[own < 0]) for customization, own in parts]
        found = [customization.virtual_table()[-1 - own] for customization, own in owned if len(own)]
        return torch.cat(found) if found else None
