"""Attention for CPUs, and masks for texts that share their beginning.

On a CPU plain grouped matrix products and a softmax beat torch's fused attention, above all in the backward pass, as
long as the scores stay in the cache: they are computed for a block of queries at a time, in memory that every block
uses again, and once more in the backward pass instead of being kept. Grouped-query heads are folded into the query
length instead of repeating keys and values.
"""

from __future__ import annotations

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
    if attention_mask is None:
        attention_mask = query.new_zeros(1, 1, length, key.shape[2])
    mask = attention_mask[..., : key.shape[2]].expand(batch, 1, length, -1)
    if softcap is None and not (dropout and module.training):
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
    if device.type == "cpu" and getattr(model, "_supports_attention_backend", False):
        AttentionInterface.register(NAME, grouped_attention)
        AttentionMaskInterface.register(NAME, eager_mask)
        return NAME
    return "sdpa" if getattr(model, "_supports_sdpa", False) else "eager"


def branch_mask(branch: torch.Tensor, position: torch.Tensor, past: int, window: int | None = None) -> torch.Tensor:
    """Which earlier tokens each token of a packed text may see.

    A packed text is a trunk followed by branches. A token sees the trunk before it and its own branch before it, and
    never another branch: each branch is computed as if it stood alone after the trunk.

    Args:
        branch: [batch, length] the branch of each token; 0 is the trunk, -1 is padding.
        position: [batch, length] the position each token has when its branch stands alone after the trunk.
        past: how many cached tokens, seen by all, precede the text at positions 0 to past - 1.
        window: how many tokens back (itself included) a token sees, or None for all.

    Returns:
        [batch, 1, length, past + length], True where the token may look.
    """
    query, key = branch[:, :, None], branch[:, None, :]
    ahead = position[:, :, None] - position[:, None, :]
    order = torch.arange(branch.shape[1], device=branch.device)
    seen = ((key == 0) | (key == query)) & (order[:, None] >= order[None, :]) & (key >= 0) & (query >= 0)
    if window is not None:
        seen &= ahead < window
    # A padding token looks at itself alone, so that no row of the softmax is empty.
    seen |= (query < 0) & (order[:, None] == order[None, :])
    if past:
        cached = torch.arange(past, device=branch.device).expand(branch.shape[0], branch.shape[1], past)
        visible = torch.ones_like(cached, dtype=torch.bool)
        if window is not None:
            visible = position[:, :, None] - cached < window
        seen = torch.cat([visible, seen], dim=-1)
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


def additive(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """True -> 0, False -> the most negative number of ``dtype``: the form every attention of transformers accepts."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, torch.finfo(dtype).min)
