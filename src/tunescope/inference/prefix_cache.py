"""Prefixes that many prompts share, computed once: system text, shots, virtual tokens, instructions.

A causal model's keys and values of a prefix do not depend on what follows. They are kept by customization and
tokens, up to a budget of bytes; what was used longest ago goes first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from tunescope.inference.compiled import Compiled
from tunescope.inference.slots import Kept, Slots

# Below this a shared prefix is cheaper to compute again than to keep and copy.
WORTH_SHARING = 16


class PrefixCache:
    """Kept prefixes.

    Args:
        budget: bytes they may take together.

    Attributes:
        hits: tokens that did not have to be computed.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.nbytes = 0
        self.hits = 0
        self._kept: OrderedDict[tuple[Compiled | None, tuple[int, ...]], Kept] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def find(self, customization: Compiled | None, tokens: Sequence[int]) -> Kept | None:
        """The longest kept prefix of ``tokens`` that leaves at least its last token to be computed."""
        lengths = sorted({len(key[1]) for key in self._kept if key[0] is customization and len(key[1]) < len(tokens)})
        best = next((key for n in reversed(lengths) if (key := (customization, tuple(tokens[:n]))) in self._kept), None)
        if best is None:
            return None
        self._kept.move_to_end(best)
        self.hits += len(best[1])
        return self._kept[best]

    def has(self, customization: Compiled | None, tokens: Sequence[int]) -> bool:
        """Whether exactly this prefix is kept."""
        return (customization, tuple(tokens)) in self._kept

    def add(self, customization: Compiled | None, tokens: Sequence[int], slots: Slots, slot: int) -> None:
        """Keep the prefix ``tokens`` of the row in ``slot``, unless it is larger than the whole budget."""
        kept = slots.keep(slot, len(tokens))
        if kept.nbytes > self.budget:
            return
        self._kept[customization, tuple(tokens)] = kept
        self.nbytes += kept.nbytes
        while self.nbytes > self.budget:
            self.nbytes -= self._kept.popitem(last=False)[1].nbytes

    def evict(self, customization: Compiled) -> None:
        """Drop what belongs to a customization that is no longer served."""
        for key in [key for key in self._kept if key[0] is customization]:
            self.nbytes -= self._kept.pop(key).nbytes
