"""How a batch of rows, each under its own customization, becomes logits: over any model of transformers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from tunescope.base import Base
from tunescope.base.sites import BLOCK_SITES, OutputEffect, Site
from tunescope.inference.row_effects import Plan
from tunescope.inference.slots import Access, SlotCache


@dataclass(frozen=True)
class Pass:
    """One forward pass.

    Attributes:
        ids: [rows, length]; negative ids are virtual tokens of the row's customization.
        positions: [rows, length], for the position embedding.
        mask: what ``Base.masks`` makes, over the places that ``access`` reads.
        access: where keys and values go and come from.
        plan: the rows' effects.
        keep: [rows, length] boolean, the positions whose logits are wanted.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    mask: Any
    access: Access
    plan: Plan
    keep: torch.Tensor


class Runner(Protocol):
    """Computes passes."""

    def logits(self, work: Pass) -> torch.Tensor:
        """[kept positions, vocabulary], in the order of the flattened ``keep``."""
        ...


class HookedRunner:
    """Runs the model's own code, with the plan's effects on hooks. Works for every architecture that has sites."""

    def __init__(self, base: Base) -> None:
        self._base = base

    def logits(self, work: Pass) -> torch.Tensor:
        """See ``Runner``."""
        with self._attached(work.plan):
            return self._base.forward(
                work.plan.virtual(work.ids),
                work.mask,
                position_ids=work.positions,
                keep=work.keep,
                cache=SlotCache(work.access),
            )

    @contextmanager
    def _attached(self, plan: Plan) -> Iterator[None]:
        handles, rows = [], len(plan.numbers)
        try:
            if plan.stack.table is not None and plan.members:
                handles += _virtual_tokens(self._base.embedding, plan.stack.table)
            for site in self._base.sites.all if plan.members else ():
                if site.name in BLOCK_SITES:
                    bottleneck = plan.bottleneck(site)
                    if bottleneck is not None:
                        handles.append(site.on_output(_per_row(bottleneck.after, rows)))
                    continue
                linear = plan.linear((site,))
                if linear is None:
                    continue
                if linear.input_scale is not None:
                    before = _per_row(lambda _given, x, linear=linear: linear.before(x), rows)  # type: ignore[misc]
                    handles.append(site.on_input(lambda x, before=before: before(x, x)))  # type: ignore[misc]
                handles.append(site.on_output(_per_row(linear.after, rows)))
            yield
        finally:
            for handle in handles:
                handle.remove()


def sites_of(base: Base, layer: int, names: tuple[str, ...]) -> tuple[Site, ...]:
    """The sites of these names in a layer."""
    return tuple(base.sites[f"{layer}.{name}"] for name in names)


def _per_row(apply: OutputEffect, rows: int) -> OutputEffect:
    """Some models flatten rows and positions into one dimension (OPT before its feed-forward maps): unfold it."""

    def unfolded(given: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        if output.ndim > 2:
            return apply(given, output)
        return apply(given.view(rows, -1, given.shape[-1]), output.view(rows, -1, output.shape[-1])).view_as(output)

    return unfolded


def _virtual_tokens(embedding: torch.nn.Module, table: torch.Tensor) -> list[Any]:
    """Have the embedding answer negative ids from the table: the same as ``methods.effects.Prefix`` does for one."""
    held: list[torch.Tensor] = []

    def before(_module: torch.nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        held[:] = [args[0]]
        return (args[0].clamp(min=0), *args[1:])

    def after(_module: torch.nn.Module, _args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        return with_virtual(held.pop(), output, table)

    return [embedding.register_forward_pre_hook(before), embedding.register_forward_hook(after)]


def with_virtual(ids: torch.Tensor, embedded: torch.Tensor, table: torch.Tensor | None) -> torch.Tensor:
    """``embedded`` [rows, length, hidden] with row -1 - id of the table where the id is negative."""
    virtual = ids < 0
    if table is None or not virtual.any():
        return embedded
    return embedded.masked_scatter(virtual[..., None], table[-1 - ids[virtual]])
