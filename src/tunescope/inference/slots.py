"""Keys and values of the rows under way: a slot a row, its tokens from position 0 on, nothing padded.

Slots of similar length lie together in an arena, one dense tensor [rows, heads, positions, head_dim] a layer for keys
and one for values: a matmul over all rows of an arena reads memory without gaps, as the CPU's library wants it. There
are as few arenas as the bound allows: positions that have memory are at most 1.25 times those in use, and a block.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch

# Positions that may have memory beyond 1.25 times those in use: room for short rows to grow together.
BLOCK = 256
_SHARE = 1.25
# How short a row may be against the longest of its arena: tried in this order, the fewest arenas first. Rows that are
# at least 0.9 of the longest waste a ninth, which leaves an eighth of the positions in use to grow.
_SPREADS = (0.0, 0.5, 0.75, 0.9)
# A capacity is a multiple of one of these where there is room for it: aligned matmuls are faster.
_ALIGNMENTS = (32, 8)


def allowance(used: int) -> int:
    """The most positions that have memory where so many are in use."""
    return int(_SHARE * used) + BLOCK


@dataclass(frozen=True)
class Kept:
    """Keys and values of the first ``tokens`` tokens of a row, [heads, tokens, head_dim] a layer."""

    tokens: int
    layers: tuple[tuple[torch.Tensor, torch.Tensor], ...]

    @property
    def nbytes(self) -> int:
        """Memory they take."""
        return sum(tensor.numel() * tensor.element_size() for layer in self.layers for tensor in layer)


@dataclass(eq=False)
class _Slot:
    """Where a row's keys and values are: a lane of an arena. ``used`` positions hold a token, or will after a pass."""

    used: int = 0
    arena: Arena | None = None
    lane: int = 0


class Arena:
    """Slots of similar length, each in a lane of its own.

    Args:
        number: counts the arenas of an engine, so that they have an order.
        rows: lanes.
        capacity: positions of each lane.
        layers: transformer layers of the base. Heads and their width are seen at the first write of each layer.
    """

    def __init__(self, number: int, rows: int, capacity: int, layers: int) -> None:
        self.number, self.rows, self.capacity = number, rows, capacity
        self.members: list[_Slot] = []
        self.layers: list[tuple[torch.Tensor, torch.Tensor] | None] = [None] * layers
        self._clean = 0  # lanes from here on were never written

    @property
    def positions(self) -> int:
        """Positions that have memory."""
        return self.rows * self.capacity

    @property
    def nbytes(self) -> int:
        """Memory they take."""
        return sum(t.numel() * t.element_size() for layer in self.layers if layer for t in layer)

    def is_for(self, rows: Sequence[_Slot], least: int, most: int) -> bool:
        """Whether it holds exactly these rows, and has from ``least`` to ``most`` positions for each."""
        return set(self.members) == set(rows) and least <= self.capacity and self.positions <= len(rows) * most

    def layer(self, index: int, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of a layer, made like those given [rows, heads, length, head_dim] where there are none."""
        made = self.layers[index]
        if made is None:
            # Zeros: a position that is masked still takes part in a matmul, so what is there must be finite.
            new = [t.new_zeros(self.rows, t.shape[1], self.capacity, t.shape[3]) for t in (keys, values)]
            made = self.layers[index] = (new[0], new[1])
        return made

    def copy(self, slot: _Slot, lane: int) -> None:
        """Copy what a slot holds in its arena into a lane of this one, and clear what an earlier row left behind."""
        tokens = 0
        if slot.arena is not None:
            tokens = min(slot.used, slot.arena.capacity, self.capacity)
            for index, layer in enumerate(slot.arena.layers):
                if layer is not None:
                    for own, other in zip(self.layer(index, *layer), layer, strict=True):
                        own[lane, :, :tokens] = other[slot.lane, :, :tokens]
        if lane < self._clean:
            for own in (tensor for layer in self.layers if layer for tensor in layer):
                own[lane, :, tokens:] = 0
        self._clean = max(self._clean, lane + 1)

    def seat(self, slot: _Slot) -> None:
        """Count a slot, already copied, as the next member."""
        slot.arena, slot.lane = self, len(self.members)
        self.members.append(slot)

    def leave(self, slot: _Slot, lane: int) -> None:
        """The member of that lane is gone; the last one moves into the gap, so that members have the first lanes."""
        last = self.members[-1]
        if last is not slot:
            self.copy(last, lane)
            last.lane = lane
            self.members[lane] = last
        self.members.pop()


class Slots:
    """The key-value memory of an engine.

    Args:
        layers: transformer layers of the base.
    """

    def __init__(self, layers: int) -> None:
        self._layers = layers
        self._slots: dict[int, _Slot] = {}
        self._arenas: list[Arena] = []
        self._made = 0

    @property
    def nbytes(self) -> int:
        """Memory they take."""
        return sum(arena.nbytes for arena in self._arenas)

    @property
    def allocated(self) -> int:
        """Positions that have memory."""
        return sum(arena.positions for arena in self._arenas)

    @property
    def used(self) -> int:
        """Positions that hold a token, or will after a pass under way."""
        return sum(slot.used for slot in self._slots.values())

    def order(self, slot: int) -> tuple[int, int]:
        """Where a slot lies: rows of a pass that are sorted by this need not be sorted again."""
        found = self._slots.get(slot)
        return (0, 0) if found is None or found.arena is None else (found.arena.number, found.lane)

    def arrange(self, slots: Sequence[int], needs: Sequence[int]) -> None:
        """Give each of the rows of a pass memory for so many positions, together in as few arenas as the bound allows.

        Args:
            slots: any number for each row; one that is new is opened.
            needs: positions in use after the pass.
        """
        rows = [self._slots.setdefault(slot, _Slot()) for slot in slots]
        for row, need in zip(rows, needs, strict=True):
            row.used = need
        arenas = Counter(row.arena for row in rows if row.arena is not None)
        short = {row for row in rows if row.arena is None or row.arena.capacity < row.used}
        if not short and len(arenas) == 1:
            return
        groups, _ = self._groups(rows)
        if not short and len(arenas) <= len(groups):
            return
        homes = [arena for arena, _ in arenas.most_common(len(groups))]
        movers = [row for row in rows if row in short or row.arena not in homes]
        if not all(self._fitted(row, homes) for row in movers):
            self._regroup(rows)

    def tidy(self) -> None:
        """Give back memory beyond the bound, where rows have left."""
        for arena in sorted(self._arenas, key=lambda a: a.positions - _SHARE * sum(m.used for m in a.members))[::-1]:
            if self.allocated <= self._bound():
                return
            self._regroup(list(arena.members))

    def close(self, slot: int) -> None:
        """A row has ended."""
        row = self._slots.pop(slot, None)
        if row is not None and row.arena is not None:
            self._leave(row, row.arena, row.lane)

    def keep(self, slot: int, tokens: int) -> Kept:
        """A copy of a row's prefix."""
        row = self._slots[slot]
        assert row.arena is not None
        layers = [
            (k[row.lane, :, :tokens].clone(), v[row.lane, :, :tokens].clone())
            for k, v in filter(None, row.arena.layers)
        ]
        return Kept(tokens, tuple(layers))

    def restore(self, slot: int, kept: Kept) -> None:
        """Write a kept prefix into a slot, which is opened where it has no memory yet."""
        row = self._slots.get(slot)
        if row is None or row.arena is None or row.arena.capacity < kept.tokens:
            self.arrange([slot], [kept.tokens])
            row = self._slots[slot]
        assert row.arena is not None
        for index, (keys, values) in enumerate(kept.layers):
            for own, given in zip(row.arena.layer(index, keys[None], values[None]), (keys, values), strict=True):
                own[row.lane, :, : kept.tokens] = given

    def access(self, slots: Sequence[int], places: torch.Tensor, device: torch.device) -> Access:
        """What a pass over arranged slots, sorted by ``order``, writes and reads; ``places`` as in ``Access``."""
        rows = [self._slots[slot] for slot in slots]
        parts: list[Part] = []
        begin = 0
        for end in range(1, len(rows) + 1):
            arena = rows[begin].arena
            if end == len(rows) or rows[end].arena is not arena:
                assert arena is not None
                parts.append(Part(arena, [row.lane for row in rows[begin:end]], begin, places[begin:end], device))
                begin = end
        return Access(parts)

    def _bound(self) -> int:
        return allowance(self.used)

    def _groups(self, rows: Sequence[_Slot]) -> tuple[list[list[_Slot]], int]:
        """Rows that are to share an arena, in as few arenas as the bound allows, and how many positions a row may have
        beyond the longest of them: half of what the bound leaves, so that a row that ends need not move the others."""
        moving = set(rows)
        staying = sum(arena.positions for arena in self._arenas if not moving.issuperset(arena.members))
        total = sum(row.used for row in rows)
        limit, growth = self._bound() - staying, (total // 8 + BLOCK // 2) // len(rows)
        for spread in _SPREADS:
            groups = _split(rows, spread)
            if sum(len(group) * (max(row.used for row in group) + growth) for group in groups) <= limit:
                return groups, growth
        return groups, total // 8 // len(rows)

    def _regroup(self, rows: Sequence[_Slot]) -> None:
        """Move rows into new arenas; all of the new memory is there before anything changes."""
        groups, growth = self._groups(rows) if rows else ([], 0)
        made: list[tuple[Arena, list[_Slot]]] = []
        for group in groups:
            longest, old = max(row.used for row in group), group[0].arena
            if old is not None and old.is_for(group, longest, longest + growth):
                continue
            self._made += 1
            arena = Arena(self._made, len(group), _aligned(longest, longest + growth), self._layers)
            for lane, row in enumerate(group):
                arena.copy(row, lane)
            made.append((arena, group))
        moved = {row for _, group in made for row in group}
        self._arenas = [arena for arena in self._arenas if not moved.issuperset(arena.members)]
        for arena, group in made:
            for row in group:
                if row.arena in self._arenas:
                    row.arena.leave(row, row.lane)
                arena.seat(row)
            self._arenas.append(arena)

    def _fitted(self, row: _Slot, homes: Sequence[Arena]) -> bool:
        """Move a row into a free lane of one of these arenas; returns whether there is one."""
        # A home that its last row has left meanwhile is given up, and takes nobody.
        free = [arena for arena in homes if arena.capacity >= row.used and 0 < len(arena.members) < arena.rows]
        if not free:
            return False
        home, old, lane = min(free, key=lambda arena: arena.capacity), row.arena, row.lane
        home.copy(row, len(home.members))
        home.seat(row)
        if old is not None:
            self._leave(row, old, lane)
        return True

    def _leave(self, row: _Slot, arena: Arena, lane: int) -> None:
        arena.leave(row, lane)
        if not arena.members:
            self._arenas.remove(arena)


def _split(rows: Sequence[_Slot], spread: float) -> list[list[_Slot]]:
    """Rows by length, none shorter than ``spread`` times the longest beside it; within a group as they are given."""
    place = {row: i for i, row in enumerate(rows)}
    groups: list[list[_Slot]] = []
    for row in sorted(rows, key=lambda row: -row.used):
        if groups and row.used >= spread * groups[-1][0].used:
            groups[-1].append(row)
        else:
            groups.append([row])
    return [sorted(group, key=place.__getitem__) for group in groups]


def _aligned(least: int, most: int) -> int:
    """A capacity from ``least`` to ``most``: a round one, unless that gives up more than half of what lies between."""
    rounded = (most // step * step for step in _ALIGNMENTS)
    return next((capacity for capacity in rounded if capacity >= least + (most - least) // 2), max(most, 1))


class Part:
    """The rows of a pass that lie in one arena.

    Args:
        arena: holds them, and has room for every position named here.
        lanes: of its rows.
        begin: number in the batch of the first of these rows; the others follow it.
        places: as in ``Access``, of these rows.
        device: of the arena.

    Attributes:
        rows: their numbers in the batch.
        seen: how many positions of each lane the pass reads, from the first on; all of them unless it says otherwise.
    """

    def __init__(self, arena: Arena, lanes: list[int], begin: int, places: torch.Tensor, device: torch.device) -> None:
        self.arena, self.places = arena, places
        self.rows = slice(begin, begin + len(lanes))
        self.seen = arena.capacity
        self._neighbors = lanes == list(range(lanes[0], lanes[0] + len(lanes)))
        self._lanes, self._device = lanes, device
        self._written: dict[int, tuple[torch.Tensor, torch.Tensor | None]] = {}

    def alone(self) -> Part:
        """These rows as a batch of their own."""
        part = copy.copy(self)
        part.rows = slice(0, len(self._lanes))
        return part

    def exchange(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Write a layer's new keys and values [rows, heads, length, head_dim]; returns all that the rows have.

        Returned as [rows, heads, seen, head_dim], views of the arena where the rows are neighbors.
        """
        own = self.arena.layer(layer, keys, values)
        target, source = self._lines(keys.shape[1])
        for tensor, new in zip(own, (keys, values), strict=True):
            lines = new.reshape(-1, new.shape[-1])
            lines = lines if source is None else lines.index_select(0, source)
            tensor.view(-1, tensor.shape[-1]).index_copy_(0, target, lines)
        if self._neighbors:
            rows = slice(self._lanes[0], self._lanes[-1] + 1)
            return own[0][rows, :, : self.seen], own[1][rows, :, : self.seen]
        index = torch.tensor(self._lanes, device=self._device)
        return own[0][:, :, : self.seen].index_select(0, index), own[1][:, :, : self.seen].index_select(0, index)

    def _lines(self, heads: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Where in the arena's memory new lines [head_dim] go; and which of those given, None for all of them."""
        if heads not in self._written:
            lane = torch.tensor(self._lanes)[:, None] * heads + torch.arange(heads)
            places = self.places[:, None].expand(-1, heads, -1)
            target = (lane[:, :, None] * self.arena.capacity + places).reshape(-1)
            real = (places >= 0).reshape(-1)
            source = None if bool(real.all()) else real.nonzero().squeeze(-1)
            target = target if source is None else target[source]
            self._written[heads] = (
                target.to(self._device),
                None if source is None else source.to(self._device),
            )
        return self._written[heads]


@dataclass(frozen=True)
class Access:
    """What one forward pass writes and reads of the slots, arena by arena.

    Attributes:
        parts: the rows of each arena, in the order of the batch. Their ``places`` [rows, length], on the CPU, say where
            each token's keys and values go; -1 where padding has none.
    """

    parts: list[Part]

    @property
    def rows(self) -> int:
        """Rows of the pass."""
        return self.parts[-1].rows.stop

    @property
    def seen(self) -> int:
        """The most positions that any row reads."""
        return max(part.seen for part in self.parts)
