"""Attention for processors, and masks for texts that share their beginning.

On a CPU plain grouped matrix products and a softmax beat torch's fused attention for short texts, above all in its
backward pass; grouped-query heads are folded into the query length instead of repeating keys and values.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask

NAME = "tunescope_grouped"

# Above this many score entries a head and row, the fused kernel's lower memory traffic wins (measured on 2 cores).
_LARGEST_SCORES = 1024 * 1024


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
        attention_mask: added to the scores, broadcastable to [batch, heads, length, key_length].

    Returns:
        [batch, length, heads, head_dim], and None in place of the attention weights.
    """
    batch, heads, length, width = query.shape
    groups, key_length = key.shape[1], key.shape[2]
    scaling = width**-0.5 if scaling is None else scaling
    if length * key_length > _LARGEST_SCORES and softcap is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, is_causal=False, **kwargs
        )
    folded = query.reshape(batch, groups, heads // groups * length, width)
    scores = torch.matmul(folded * scaling, key.transpose(2, 3))
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if attention_mask is not None:
        per_head = scores.view(batch, groups, heads // groups, length, key_length)
        scores = (per_head + attention_mask[:, :, None, :, :key_length]).view_as(scores)
    weights = torch.softmax(scores, dim=-1)
    weights = nn.functional.dropout(weights, dropout, training=module.training and dropout > 0)
    mixed = torch.matmul(weights, value.to(weights.dtype)).view(batch, heads, length, width)
    return mixed.transpose(1, 2), None


def register() -> str:
    """Make the grouped attention known to transformers; returns the name to load a model with."""
    AttentionInterface.register(NAME, grouped_attention)
    AttentionMaskInterface.register(NAME, eager_mask)
    return NAME


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
