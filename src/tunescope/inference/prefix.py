"""What several prompts share at their beginning, computed once: system text, shots, virtual tokens, instruction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import DynamicCache

from tunescope.base import Base

# Below this a shared beginning is cheaper to compute again than to keep and copy.
_WORTH_SHARING = 16


@dataclass(frozen=True)
class SharedBeginning:
    """The first ``tokens`` tokens of every prompt, and their keys and values (None where nothing is shared)."""

    tokens: int
    _base: Base
    _cache: DynamicCache | None

    @classmethod
    def of(cls, base: Base, prompts: Sequence[list[int]]) -> SharedBeginning:
        """What ``prompts`` share, computed by ``base`` as it is customized now.

        Nothing is shared by fewer than two prompts, where it would not pay, or where attention slides and its cache
        would drop the beginning. The last token of each prompt is left to be computed: it gives the first logits.
        """
        tokens = _common(prompts) if len(prompts) > 1 and not any(base.windows.values()) else 0
        if tokens < _WORTH_SHARING:
            return cls(0, base, None)
        cache = DynamicCache(config=base.model.config)
        ids = torch.tensor([prompts[0][:tokens]], device=base.device)
        base.forward(ids, torch.ones_like(ids), keep=torch.zeros_like(ids, dtype=torch.bool), cache=cache)
        return cls(tokens, base, cache)

    def cache(self, rows: int) -> DynamicCache:
        """A new cache in which each of ``rows`` rows has the beginning behind it."""
        copy = DynamicCache(config=self._base.model.config)
        for i, layer in enumerate(self._cache.layers if self._cache is not None else ()):
            copy.update(layer.keys.expand(rows, -1, -1, -1), layer.values.expand(rows, -1, -1, -1), i)
        return copy


def _common(prompts: Sequence[list[int]]) -> int:
    first, last = min(prompts), max(prompts)  # in order of tokens: all others lie between these two
    common = 0
    while common < min(len(first), len(last)) and first[common] == last[common]:
        common += 1
    return min(common, min(map(len, prompts)) - 1)
