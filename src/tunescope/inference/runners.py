"""How a batch of rows, each under its own customization, is computed: over any model of transformers."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from torch.nn import functional
from torch.utils.hooks import RemovableHandle
from transformers import Cache

from tunescope.base import Base
from tunescope.base.sites import BLOCK_SITES, OutputEffect, Site
from tunescope.inference.plan import Plan
from tunescope.inference.slots import Access, Part


@dataclass(frozen=True)
class Pass:
    """One forward pass. Its own tensors are on the CPU.

    Attributes:
        ids: [rows, length]; negative ids are virtual tokens of the row's customization.
        positions: [rows, length], for the position embedding.
        places: [rows, length] where the tokens stand in their slots, -1 for padding.
        branch: [rows, length] as ``Packed.branch``, where branches stand behind what a slot holds; None where each
            token sees its own place and those before it.
        access: where keys and values go and come from.
        plan: the rows' effects.
        keep: [rows, length] boolean, the positions whose hidden states are wanted.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    places: torch.Tensor
    branch: torch.Tensor | None
    access: Access
    plan: Plan
    keep: torch.Tensor

    def masks(self, base: Base, rows: slice, seen: int) -> Any:
        """What the tokens of some rows may see of the first ``seen`` places of their slots; see ``Base.slot_masks``."""
        given = (self.places,) if self.branch is None else (self.places, self.branch, self.positions)
        places, *packed = (each[rows].to(base.device) for each in given)
        return base.slot_masks(places, seen, *packed)

    @cached_property
    def virtual(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Where virtual tokens stand in the flattened batch, and the rows of the stack's table that they are."""
        ids = self.plan.virtual(self.ids).flatten()
        where = (ids < 0).nonzero().squeeze(-1)
        table = self.plan.stack.table
        return None if table is None or not len(where) else (where.to(table.device), (-1 - ids[where]).to(table.device))

    def with_virtual(self, embedded: torch.Tensor) -> torch.Tensor:
        """``embedded`` [rows, length, hidden] with the virtual tokens in their places."""
        if self.virtual is None or self.plan.stack.table is None:
            return embedded
        where, rows = self.virtual
        flat = embedded.reshape(-1, embedded.shape[-1])
        return flat.index_copy(0, where, self.plan.stack.table[rows].to(flat.dtype)).view_as(embedded)


class Runner(Protocol):
    """Computes passes."""

    def hidden(self, work: Pass) -> torch.Tensor:
        """What heads read, [kept positions, hidden], in the order of the flattened ``keep``."""
        ...

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """What the vocabulary head makes of [positions, hidden]: [positions, vocabulary]."""
        ...


class HookedRunner:
    """Runs the model's own code, with the plan's effects on hooks. Works for every architecture that has sites.

    Hooks are registered when a pass needs more of them than there are. They do what the pass under way in their thread
    says; between passes they do nothing, and they go with the runner.
    """

    def __init__(self, base: Base) -> None:
        self._base = base
        self._current = _Current()
        self._sites: frozenset[str] = frozenset()
        self._handles: list[RemovableHandle] = []
        weakref.finalize(self, _remove, self._handles)

    def hidden(self, work: Pass) -> torch.Tensor:
        """See ``Runner``.

        A model's own attention takes one block of memory. Rows of several arenas are copied together for it, unless
        that moves more than the weights, which a pass for each arena reads again.
        """
        parts = work.access.parts
        if len(parts) > 1 and self._copied(work.access) > self._base.parameters * self._base.dtype.itemsize:
            return torch.cat([self._hidden(_only(work, part)) for part in parts])
        return self._hidden(work)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """See ``Runner``."""
        return self._base.vocabulary_head(hidden)

    def _copied(self, access: Access) -> float:
        """Bytes of keys and values of all rows as long as the longest."""
        arena = access.parts[0].arena
        return access.rows * access.seen * arena.nbytes / arena.positions

    def _hidden(self, work: Pass) -> torch.Tensor:
        self._hook(work.plan.sites)
        device = self._base.device
        self._current.work = work
        try:
            hidden = self._base.hidden(
                work.ids.clamp(min=0).to(device),
                work.masks(self._base, slice(None), work.access.seen),
                position_ids=work.positions.to(device),
                cache=SlotCache(work.access),
            )
        finally:
            self._current.work = None
        return kept(hidden, work.keep)

    def _hook(self, sites: frozenset[str]) -> None:
        """Register hooks at these sites, all anew where one lacks: a module's act in the order of its sites."""
        if sites <= self._sites:
            return
        _remove(self._handles)
        self._sites |= sites
        self._handles += _register(self._base, self._sites, self._current)


class _Current(threading.local):
    """The pass under way in this thread."""

    work: Pass | None = None


def _only(work: Pass, part: Part) -> Pass:
    """The rows of one arena as a pass of their own."""
    rows = part.rows
    return Pass(
        work.ids[rows],
        work.positions[rows],
        work.places[rows],
        None if work.branch is None else work.branch[rows],
        Access([part.alone()]),
        work.plan.of_rows(rows),
        work.keep[rows],
    )


class SlotCache(Cache):
    """The slots as transformers' models want them."""

    def __init__(self, access: Access) -> None:
        super().__init__(layers=[])
        self._access = access

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Called by each attention layer; rows of several arenas come back as long as the longest."""
        access = self._access
        found = [part.exchange(layer_idx, key_states[part.rows], value_states[part.rows]) for part in access.parts]
        if len(found) == 1:
            return found[0]
        keys, values = (
            torch.cat([functional.pad(each, (0, 0, 0, access.seen - each.shape[2])) for each in side])
            for side in zip(*found, strict=True)
        )
        return keys, values

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """0: positions and masks are always given, and models that count from here would count twice."""
        return 0


def kept(hidden: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """Of [rows, length, hidden] the positions where ``keep`` [rows, length] is true, as [positions, hidden]."""
    flat = hidden.reshape(-1, hidden.shape[-1])
    return flat if bool(keep.all()) else flat[keep.flatten().nonzero().squeeze(-1).to(flat.device)]


def sites_of(base: Base, layer: int, names: tuple[str, ...]) -> tuple[Site, ...]:
    """The sites of these names in a layer."""
    return tuple(base.sites[f"{layer}.{name}"] for name in names)


def _register(base: Base, sites: frozenset[str], current: _Current) -> Iterator[RemovableHandle]:
    def embedded(_module: torch.nn.Module, _args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        return output if current.work is None else current.work.with_virtual(output)

    yield base.embedding.register_forward_hook(embedded)
    for site in base.sites.all:
        if site.key in sites:
            yield site.on_output(_output_effect(site, current))
            if site.name not in BLOCK_SITES:
                yield site.on_input(_input_effect(site, current))


def _remove(handles: list[RemovableHandle]) -> None:
    while handles:
        handles.pop().remove()


def _output_effect(site: Site, current: _Current) -> OutputEffect:
    def effect(given: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        work = current.work
        if work is None:
            return output
        found = work.plan.bottleneck(site) if site.name in BLOCK_SITES else work.plan.linear((site,))
        return output if found is None else _per_row(found.after, len(work.ids))(given, output)

    return effect


def _input_effect(site: Site, current: _Current) -> Callable[[torch.Tensor], torch.Tensor]:
    def effect(given: torch.Tensor) -> torch.Tensor:
        work = current.work
        found = None if work is None else work.plan.linear((site,))
        if work is None or found is None or found.input_scale is None:
            return given
        return _per_row(lambda _given, x: found.before(x), len(work.ids))(given, given)

    return effect


def _per_row(apply: OutputEffect, rows: int) -> OutputEffect:
    """Some models flatten rows and positions into one dimension (OPT before its feed-forward maps): unfold it."""

    def unfolded(given: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        if output.ndim > 2:
            return apply(given, output)
        return apply(given.view(rows, -1, given.shape[-1]), output.view(rows, -1, output.shape[-1])).view_as(output)

    return unfolded
