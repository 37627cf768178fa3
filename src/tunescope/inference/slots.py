"""Keys and values of the rows under way: a slot a row, a place a token.

A row's tokens stand in its slot from place 0 on, whatever their number: its prefix, then its text. Nothing is padded,
so nothing can come between the two, and a row that grows moves no other.

There are about as many places as the longest row needs, and no more: a product over all places of neighboring slots
then reads memory without gaps, which the processor's library multiplies as it is; what has gaps it copies first, every
time. Of slots too there are about as many as rows need: one long row does not reserve its length for all.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import Cache

# Places come in multiples of this, so that products keep their shape for a while: a new one is prepared by the library.
_PLACES = 32
# When they run out, this share of them is added at least, so that long rows are not moved every few steps.
_GROWTH = 1 / 8


@dataclass(frozen=True)
class Kept:
    """Keys and values of the first ``tokens`` tokens of a row, [heads, tokens, head_dim] a layer."""

    tokens: int
    layers: tuple[tuple[torch.Tensor, torch.Tensor], ...]

    @property
    def nbytes(self) -> int:
        """Memory they take."""
        return sum(tensor.numel() * tensor.element_size() for layer in self.layers for tensor in layer)


class Slots:
    """The key-value memory of an engine.

    Args:
        rows: the most slots there can be.
        layers: transformer layers of the base. Heads and their width are seen at the first write of each layer.

    Attributes:
        height: slots that have memory now.
        capacity: places of each of them.
    """

    def __init__(self, rows: int, layers: int) -> None:
        self.rows = rows
        self.height, self.capacity = 1, _PLACES
        self._layers: list[tuple[torch.Tensor, torch.Tensor] | None] = [None] * layers

    @property
    def nbytes(self) -> int:
        """Memory they take."""
        return sum(t.numel() * t.element_size() for layer in self._layers if layer for t in layer)

    def reserve(self, rows: int, places: int) -> None:
        """See to it that the first ``rows`` slots have at least ``places`` places each."""
        height, capacity = self.height, self.capacity
        if rows > height:
            height = min(max(rows, 2 * height), self.rows)
        if places > capacity:
            capacity = _rounded(max(places, int(capacity * (1 + _GROWTH))))
        self._resize(height, capacity)

    def release(self, rows: int, places: int) -> None:
        """No slot beyond the first ``rows`` is in use, and none has more than ``places`` tokens now: give back what is
        far more than that."""
        height = rows if self.height >= 4 * rows else self.height
        capacity = _rounded(places) if self.capacity >= 2 * _rounded(places) else self.capacity
        self._resize(height, capacity)

    def worth_reading(self, seen: int) -> int:
        """How many places to read in order to see the first ``seen``: all of them, if these are not far more."""
        return self.capacity if self.capacity <= 2 * seen else _rounded(seen)

    def _resize(self, height: int, capacity: int) -> None:
        if (height, capacity) == (self.height, self.capacity):
            return
        self.height, self.capacity = height, capacity
        for i, layer in enumerate(self._layers):
            if layer is not None:
                self._layers[i] = (self._resized(layer[0]), self._resized(layer[1]))

    def move(self, source: int, target: int, tokens: int) -> None:
        """Copy the first ``tokens`` places of one slot into another."""
        if not tokens:  # a row that waits for its first pass may have no memory yet
            return
        for layer in self._layers:
            for tensor in layer or ():
                tensor[target, :, :tokens] = tensor[source, :, :tokens]

    def swap(self, a: int, b: int, tokens: int) -> None:
        """Exchange the first ``tokens`` places of two slots."""
        for layer in self._layers:
            for tensor in layer or ():
                held = tensor[a, :, :tokens].clone()
                tensor[a, :, :tokens] = tensor[b, :, :tokens]
                tensor[b, :, :tokens] = held

    def keep(self, slot: int, tokens: int) -> Kept:
        """A copy of a row's beginning."""
        layers = tuple(
            (layer[0][slot, :, :tokens].clone(), layer[1][slot, :, :tokens].clone()) for layer in self._layers if layer
        )
        return Kept(tokens, layers)

    def restore(self, slot: int, kept: Kept) -> None:
        """Write a kept beginning into a slot."""
        self.reserve(slot + 1, kept.tokens)
        for i, (keys, values) in enumerate(kept.layers):
            own = self._layer(i, keys[None], values[None])
            own[0][slot, :, : kept.tokens] = keys
            own[1][slot, :, : kept.tokens] = values

    def _layer(self, index: int, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        layer = self._layers[index]
        if layer is None:
            layer = (self._new(keys), self._new(values))
            self._layers[index] = layer
        return layer

    def _new(self, like: torch.Tensor) -> torch.Tensor:
        # Zeros, because a place that is masked still takes part in a product: what is there must be finite.
        return like.new_zeros(self.height, like.shape[1], self.capacity, like.shape[3])

    def _resized(self, tensor: torch.Tensor) -> torch.Tensor:
        made = self._new(tensor)
        rows, places = (min(old, new) for old, new in ((len(tensor), self.height), (tensor.shape[2], self.capacity)))
        made[:rows, :, :places] = tensor[:rows, :, :places]
        return made


def _rounded(places: int) -> int:
    return max(-(-places // _PLACES), 1) * _PLACES


@dataclass
class Access:
    """What one forward pass writes and reads of the slots.

    Args:
        slots: the memory; it has room for every place named here.
        rows: slot of each row of the batch.
        places: [rows, length] where each token's keys and values go.
        seen: how many places of each slot the pass reads, from the first on.
    """

    slots: Slots
    rows: list[int]
    places: torch.Tensor
    seen: int
    _flat: dict[int, torch.Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        first, count = self.rows[0], len(self.rows)
        self._adjacent = self.rows == list(range(first, first + count))
        self._index = torch.tensor(self.rows, device=self.places.device)

    def exchange(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Write a layer's new keys and values [rows, heads, length, head_dim]; returns all that the rows have.

        Returned as [rows, heads, seen, head_dim], views of the slots where the rows are neighbors.
        """
        own = self.slots._layer(layer, keys, values)
        heads = keys.shape[1]
        if heads not in self._flat:
            lane = self._index[:, None] * heads + torch.arange(heads, device=self._index.device)
            self._flat[heads] = (lane[:, :, None] * self.slots.capacity + self.places[:, None, :]).reshape(-1)
        for tensor, new in zip(own, (keys, values), strict=True):
            tensor.view(-1, tensor.shape[-1]).index_copy_(0, self._flat[heads], new.reshape(-1, new.shape[-1]))
        if self._adjacent:
            begin = self.rows[0]
            return tuple(t[begin : begin + len(self.rows), :, : self.seen] for t in own)  # type: ignore[return-value]
        return tuple(t[:, :, : self.seen].index_select(0, self._index) for t in own)  # type: ignore[return-value]


class SlotCache(Cache):
    """The slots as transformers' models want them; see ``Access``."""

    def __init__(self, access: Access) -> None:
        super().__init__(layers=[])
        self._access = access

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Called by each attention layer."""
        return self._access.exchange(layer_idx, key_states, value_states)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """0: positions and masks are always given, and models that count from here would count twice."""
        return 0
