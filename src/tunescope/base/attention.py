"""Attention for CPUs, and masks for texts that share a prefix.

On a CPU plain grouped matrix products and a softmax beat torch's fused attention, above all in the backward pass, as
long as the scores stay in the cache: they are computed for a block of queries at a time, in memory that every block
uses again, and once more in the backward pass instead of being kept. Grouped-query heads are folded into the query
length instead of repeating keys and values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.weak import WeakTensorKeyDictionary
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

NAME = "tunescope_grouped"

# Queries of a block, and scores of a block with all its rows and heads: 4 MB in bfloat16 (measured on 2 cores).
_QUERIES = 256
_SCORES = 2 * 1024 * 1024


def grouped_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """softmax(q kᵀ · scaling + mask) v with one product a key-value head.

    Args:
        query: [batch, heads, length, head_dim].
        key, value: [batch, key_value_heads, key_length, head_dim].
        attention_mask: added to the scores, broadcastable to [batch, 1, length, key_length].

    Returns:
        [batch, length, heads, head_dim], and None in place of the attention weights.
    """
    batch, heads, length, width = query.shape
    query = query * (width**-0.5 if scaling is None else scaling)
    value = value.to(query.dtype)
    plain = softcap is None and not (dropout and module.training)
    if plain and attention_mask is not None and (branches := _branches.get(attention_mask)) is not None:
        return branches.attend(query, key, value), None
    if attention_mask is None:
        attention_mask = torch.zeros(1, 1, length, key.shape[2], dtype=query.dtype, device=query.device)
    mask = attention_mask[..., : key.shape[2]].expand(batch, 1, length, -1)
    if plain:
        return _BlockAttention.apply(query, key, value, mask, _blocks(attention_mask, mask, heads)), None
    groups = key.shape[1]
    scores = torch.matmul(query.reshape(batch, groups, -1, width), key.transpose(2, 3)).view(batch, heads, length, -1)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    weights = nn.functional.dropout(torch.softmax(scores + mask, dim=-1), dropout, module.training)
    mixed = torch.matmul(weights.view(batch, groups, -1, key.shape[2]), value)
    return mixed.view(batch, heads, length, width).transpose(1, 2), None


class _BlockAttention(torch.autograd.Function):
    """softmax(q kᵀ + mask) v [batch, length, heads, head_dim], a block of queries at a time."""

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor,
        blocks: list[_Block],
    ) -> torch.Tensor:
        batch, heads, length, width = query.shape
        mixed = query.new_empty(batch, length, heads, width)
        room = query.new_empty(max(block.scores for block in blocks))
        for block in blocks:
            weights = _weights(block, query, key, mask, room)
            _store(mixed.transpose(1, 2)[block.of_queries], torch.bmm(weights, value[block.of_keys].flatten(0, 1)))
        ctx.save_for_backward(query, key, value, mask)
        ctx.blocks = blocks
        return mixed

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, None, None]:
        query, key, value, mask = ctx.saved_tensors
        towards = grads[0].transpose(1, 2)
        of_query = torch.empty_like(query)
        # Several blocks add to the same keys: in float32, so that their number does not matter.
        of_key, of_value = (torch.zeros_like(each, dtype=torch.float32) for each in (key, value))
        room = query.new_empty(2, max(block.scores for block in ctx.blocks))
        for block in ctx.blocks:
            weights = _weights(block, query, key, mask, room[0])
            wanted = _folded(towards[block.of_queries], key.shape[1])
            slopes = room[1, : block.scores].view_as(weights)
            torch.bmm(wanted, value[block.of_keys].flatten(0, 1).transpose(1, 2), out=slopes)
            torch._softmax_backward_data(slopes, weights, -1, weights.dtype, grad_input=slopes)
            _store(of_query[block.of_queries], torch.bmm(slopes, key[block.of_keys].flatten(0, 1)))
            own = _folded(query[block.of_queries], key.shape[1])
            of_key[block.of_keys] += torch.bmm(slopes.transpose(1, 2), own).view_as(key[block.of_keys])
            of_value[block.of_keys] += torch.bmm(weights.transpose(1, 2), wanted).view_as(value[block.of_keys])
        return of_query, of_key.to(key.dtype), of_value.to(value.dtype), None, None


class _Block(NamedTuple):
    """Some rows' queries, and the keys between the first and the last that any of them sees; the mask is 0 for those
    before ``masked``."""

    of_queries: tuple[slice, slice, slice]
    of_keys: tuple[slice, slice, slice]
    scores: int
    masked: int


@dataclass(frozen=True)
class _Branches:
    """Packed texts taken apart: all prefixes, and all branches with the keys of their prefix before their own.

    In the packed layout a block of queries would read the keys of every branch before its own, only to hide them.

    Attributes:
        prefixes: [groups, P] flat positions of the prefixes' tokens; padding is the group's first: what is not
            finite in one group must not reach another, not even times zero.
        branches: [branches, B] flat positions of the branches' tokens; padding is the branch's first.
        group: [branches] which group each is of.
        place: [groups · length] of each flat position, where it lies in all prefixes' tokens and then all branches'.
            Padding has any.
        padding: [groups · length] boolean.
        prefix_mask: [groups, 1, P, P], added to the scores.
        branch_mask: [branches, 1, B, P + B], added to the scores.
    """

    prefixes: torch.Tensor
    branches: torch.Tensor
    group: torch.Tensor
    place: torch.Tensor
    padding: torch.Tensor
    prefix_mask: torch.Tensor
    branch_mask: torch.Tensor

    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Attention [groups, length, heads, head_dim] of [groups, heads, length, head_dim]."""
        (q, own_q), (k, own_k), (v, own_v) = (_Apart.apply(each, self) for each in (query, key, value))
        keys, values = (torch.cat([some[self.group], own], dim=2) for some, own in ((k, own_k), (v, own_v)))
        parts = [_attended(own_q, keys, values, self.branch_mask)]
        if q.shape[2]:
            parts.insert(0, _attended(q, k, v, self.prefix_mask))
        mixed = torch.cat([part.flatten(0, 1) for part in parts])
        return mixed[self.place].view(query.shape[0], query.shape[2], *mixed.shape[1:])


class _Apart(torch.autograd.Function):
    """[groups, heads, length, head_dim] into prefixes [groups, heads, P, head_dim] and branches [branches, heads, B,
    head_dim]. Each token goes to one place, so its gradient comes from there alone; padding goes nowhere.
    """

    @staticmethod
    def forward(ctx: Any, lanes: torch.Tensor, branches: _Branches) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.branches, ctx.shape = branches, lanes.shape
        flat = lanes.transpose(1, 2).flatten(0, 1)
        return flat[branches.prefixes].transpose(1, 2), flat[branches.branches].transpose(1, 2)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        groups, _, length, _ = ctx.shape
        flat = torch.cat([grad.transpose(1, 2).flatten(0, 1) for grad in grads])
        found = flat[ctx.branches.place]
        found[ctx.branches.padding] = 0
        return found.view(groups, length, *flat.shape[1:]).transpose(1, 2), None


def _attended(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return _BlockAttention.apply(query, key, value, mask, _blocks(mask, mask, query.shape[1]))


# The masks of packed texts, and how to take these apart.
_branches: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def take_apart(mask: torch.Tensor, branch: torch.Tensor) -> None:
    """Let a mask of packed texts without cached ones before them be computed prefix by prefix and branch by branch.

    Args:
        mask: [groups, 1, length, length], what ``additive`` makes of ``branch_mask``.
        branch: [groups, length], as of ``branch_mask``.
    """
    groups, length = branch.shape
    flat = torch.arange(groups * length, device=branch.device).view(groups, length)
    in_prefix = branch == 0
    prefix = in_prefix.sum(1)
    widest = int(prefix.max())
    offsets = torch.arange(widest, device=branch.device)
    real_prefix = offsets < prefix[:, None]
    prefixes = flat[:, :1] + torch.where(real_prefix, offsets, 0)  # a prefix stands first in its group
    # Branches follow each other without a gap: each begins where the number changes.
    before = torch.cat([torch.full_like(branch[:, :1], -1), branch[:, :-1]], dim=1)
    begin = flat[(branch > 0) & (branch != before)]
    group = begin // length
    number = branch.flatten()[begin]
    size = (branch[group] == number[:, None]).sum(1)
    steps = torch.arange(int(size.max()), device=branch.device)
    real = steps < size[:, None]
    branches = begin[:, None] + torch.where(real, steps, 0)
    place = torch.zeros(groups * length, dtype=torch.long, device=branch.device)
    place[prefixes[real_prefix]] = torch.arange(groups * widest, device=branch.device).view(groups, widest)[real_prefix]
    place[branches[real]] = groups * widest + torch.arange(real.numel(), device=branch.device).view_as(real)[real]
    hidden = torch.finfo(mask.dtype).min
    prefix_mask = mask[:, :, :widest, :widest].masked_fill(~real_prefix[:, None, None, :], hidden)
    rows, own = mask[group, 0], branches % length
    at = own[:, :, None]
    to_prefix = rows.gather(1, at.expand(-1, -1, length))[:, :, :widest]
    to_prefix = to_prefix.masked_fill(~real_prefix[group][:, None, :], hidden)
    to_own = rows.gather(1, at.expand(-1, -1, length)).gather(2, own[:, None, :].expand(-1, own.shape[1], -1))
    to_own = to_own.masked_fill(~real[:, None, :], hidden)
    # A padding query looks at itself alone, so that no row of the softmax is empty.
    diagonal = torch.eye(own.shape[1], dtype=torch.bool, device=branch.device) & ~real[:, :, None]
    to_own = to_own.masked_fill(diagonal, 0)
    branch_mask = torch.cat([to_prefix, to_own], dim=2)[:, None].contiguous()
    padding = branch.flatten() < 0
    _branches[mask] = _Branches(prefixes, branches, group, place, padding, prefix_mask.contiguous(), branch_mask)


# Every layer is given the same mask, which is looked at once.
_known: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def _blocks(given: torch.Tensor, mask: torch.Tensor, heads: int) -> list[_Block]:
    """The blocks of ``mask`` [batch, 1, length, keys], a view of the mask ``given`` to the layer."""
    known = _known.setdefault(given, {})
    shape = (heads, *mask.shape)
    if shape not in known:
        known[shape] = _cut(mask, heads)
    return known[shape]


def _cut(mask: torch.Tensor, heads: int) -> list[_Block]:
    batch, _, length, keys = mask.shape
    queries = min(length, _QUERIES)
    rows = max(_SCORES // (heads * queries * keys), 1)
    hidden = torch.finfo(mask.dtype).min
    blocks = []
    for row in range(0, batch, rows):
        for begin in range(0, length, queries):
            own, some = slice(row, row + rows), slice(begin, begin + queries)
            part = mask[own, 0, some]
            seen = (part.flatten(0, 1).amax(0) > hidden).nonzero()
            near = _widened(int(seen[0]), int(seen[-1]) + 1, keys) if len(seen) else slice(0, keys)
            changed = part[..., near].flatten(0, 1).ne(0).any(0).nonzero()
            masked = near.start + int(changed[0]) if len(changed) else near.stop
            scores = part.shape[0] * heads * part.shape[1] * (near.stop - near.start)
            blocks.append(_Block((own, slice(None), some), (own, slice(None), near), scores, masked))
    return blocks


def _widened(begin: int, end: int, keys: int) -> slice:
    """From and to a multiple of 32: products with aligned lengths are faster than ones with a few keys less."""
    return slice(begin // 32 * 32, min(-(-end // 32) * 32, keys))


def _weights(
    block: _Block, query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor, room: torch.Tensor
) -> torch.Tensor:
    """What a block's queries give its keys, [rows · groups, heads a group · queries, keys], written into ``room``."""
    groups, keys = key.shape[1], key[block.of_keys].flatten(0, 1)
    queries = _folded(query[block.of_queries], groups)
    weights = room[: block.scores].view(len(keys), queries.shape[1], keys.shape[1])
    torch.bmm(queries, keys.transpose(1, 2), out=weights)
    near = block.of_keys[2]
    if block.masked < near.stop:
        some = mask[block.of_queries][..., block.masked : near.stop]
        weights.view(len(some), -1, some.shape[2], keys.shape[1])[..., block.masked - near.start :].add_(some)
    return torch.softmax(weights, dim=-1, out=weights)


def _folded(lanes: torch.Tensor, groups: int) -> torch.Tensor:
    """[rows, heads, queries, head_dim] to [rows · groups, heads a group · queries, head_dim]."""
    return lanes.reshape(lanes.shape[0] * groups, -1, lanes.shape[3])


def _store(target: torch.Tensor, folded: torch.Tensor) -> None:
    """Copy what ``_folded`` gives back to where it came from."""
    target.copy_(folded.view(target.shape))


def kind_for(config: Any, device: torch.device) -> str:
    """The ``attn_implementation`` to load a model with: on a CPU ours, where the architecture can take one that is not
    its own (Falcon, Bloom and StableLM cannot); else transformers' sdpa where the architecture has it, or eager.
    """
    model = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if device.type == "cpu" and is_replaceable(config):
        AttentionInterface.register(NAME, grouped_attention)
        AttentionMaskInterface.register(NAME, eager_mask)
        return NAME
    return "sdpa" if getattr(model, "_supports_sdpa", False) else "eager"


def is_replaceable(config: Any) -> bool:
    """Whether an architecture can take an attention that is not its own."""
    return bool(getattr(MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None), "_supports_attention_backend", False))


def branch_mask(branch: torch.Tensor, position: torch.Tensor, window: int | None = None) -> torch.Tensor:
    """Which earlier tokens each token of a packed text may see.

    A packed text is a prefix followed by branches. A token sees the prefix before it and its own branch before it, and
    never another branch: each branch is computed as if it stood alone after the prefix.

    Args:
        branch: [batch, length] the branch of each token; 0 is the prefix, -1 is padding.
        position: [batch, length] the position each token has when its branch stands alone after the prefix.
        window: how many tokens back (itself included) a token sees, or None for all.

    Returns:
        [batch, 1, length, length], True where the token may look.
    """
    query, key = branch[:, :, None], branch[:, None, :]
    ahead = position[:, :, None] - position[:, None, :]
    order = torch.arange(branch.shape[1], device=branch.device)
    seen = ((key == 0) | (key == query)) & (order[:, None] >= order[None, :]) & (key >= 0) & (query >= 0)
    if window is not None:
        seen &= ahead < window
    # A padding token looks at itself alone, so that no row of the softmax is empty.
    seen |= (query < 0) & (order[:, None] == order[None, :])
    return seen[:, None]


def place_mask(place: torch.Tensor, seen: int, window: int | None = None) -> torch.Tensor:
    """Which of the first ``seen`` places of its slot each token may see: its own, and those before it.

    Args:
        place: [batch, length] where each token stands in its slot; a slot has no padding, so this is its position too.
        seen: how many places are looked at.
        window: how many tokens back (itself included) a token sees, or None for all.

    Returns:
        [batch, 1, length, seen], True where the token may look.
    """
    keys = torch.arange(seen, device=place.device)
    visible = keys <= place[:, :, None]
    if window is not None:
        visible &= place[:, :, None] - keys < window
    return visible[:, None]


@dataclass(frozen=True)
class SlotBranches:
    """Branches in slots, behind what the slots hold already.

    Attributes:
        branch: [batch, length] as of ``branch_mask``; a slot's earlier tokens are prefix.
        position: [batch, length] as of ``branch_mask``.
        keys: [batch, seen] the branch of what stands at each place of a slot.
        positions: [batch, seen] its position.
    """

    branch: torch.Tensor
    position: torch.Tensor
    keys: torch.Tensor
    positions: torch.Tensor

    @classmethod
    def of(cls, place: torch.Tensor, seen: int, branch: torch.Tensor, position: torch.Tensor) -> SlotBranches:
        """With ``place`` [batch, length] of each token in its slot, -1 for padding; see ``place_mask``."""
        row, column = (place >= 0).nonzero(as_tuple=True)
        at = (row, place[row, column])
        keys = torch.zeros(len(place), seen, dtype=branch.dtype, device=place.device)
        positions = torch.arange(seen, device=place.device).repeat(len(place), 1)
        keys[at], positions[at] = branch[row, column], position[row, column]
        return cls(branch, position, keys, positions)

    def mask(self, place: torch.Tensor, window: int | None = None) -> torch.Tensor:
        """``place_mask`` without what stands in other branches; the window counts positions."""
        keys, positions = self.keys[:, None, :], self.positions[:, None, :]
        visible = (keys == 0) | (keys == self.branch[:, :, None])
        if window is not None:
            visible &= self.position[:, :, None] - positions < window
        return place_mask(place, self.keys.shape[1]) & visible[:, None]


def additive(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """True -> 0, False -> the most negative number of ``dtype``: the form every attention of transformers accepts."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, torch.finfo(dtype).min)
