from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.tiny import tiny_base

from tunescope.inference import Engine, Sampling
from tunescope.inference.passes import Passes
from tunescope.inference.slots import Access, Slots

HEADS, WIDTH = 2, 4


def written(rows: int, places: int) -> tuple[Slots, torch.Tensor]:
    """Slots with a first layer whose keys are drawn numbers, and these numbers."""
    slots = Slots(rows, 1)
    keys = torch.randn(rows, HEADS, places, WIDTH)
    slots.reserve(rows, places)
    where = torch.arange(places).expand(rows, places)
    Access(slots, list(range(rows)), where, places).exchange(0, keys, -keys)
    return slots, keys


@given(st.integers(1, 70), st.lists(st.tuples(st.integers(1, 9), st.integers(0, 400)), max_size=5))
def test_rows_stay_as_they_are_while_slots_and_places_come_and_go(places: int, others: list[tuple[int, int]]) -> None:
    slots, keys = written(3, places)
    slots.rows = 9
    for height, other in others:
        slots.reserve(height, other)
        assert slots.capacity >= max(other, places) and height <= slots.height <= 9
        slots.release(2, places)
        assert places <= slots.capacity < 2 * (places + 32) and 2 <= slots.height < 8
        kept = slots.keep(1, places)
        assert torch.equal(kept.layers[0][0], keys[1]) and torch.equal(kept.layers[0][1], -keys[1])


def test_memory_is_for_the_rows_there_are() -> None:
    base = tiny_base()
    engine = Engine(base, slots=8)
    long, short = [5] * 200, [6] * 4
    engine.generate_ids([long], None, Sampling(max_new_tokens=2))
    slots = engine.scheduler.passes.slots
    assert slots.height == 1  # not the length of one row for all
    held = slots.nbytes
    moved: list[int] = []
    grow = slots._resize
    slots._resize = lambda *size: (moved.append(1) if size != (slots.height, slots.capacity) else None, grow(*size))  # type: ignore[assignment,func-returns-value]
    engine.generate_ids([long], None, Sampling(max_new_tokens=2))
    assert not moved and slots.nbytes == held  # the next one like it finds its memory
    engine.generate_ids([short] * 8, None, Sampling(max_new_tokens=2))
    assert slots.height < 8 and slots.capacity == 32


def test_a_step_of_neighboring_rows_reads_memory_without_gaps() -> None:
    slots, _ = written(4, 40)
    access = Access(slots, [0, 1, 2], torch.full((3, 1), 40), slots.worth_reading(41))
    for tensor in access.exchange(0, torch.zeros(3, HEADS, 1, WIDTH), torch.zeros(3, HEADS, 1, WIDTH)):
        assert tensor.shape == (3, HEADS, 64, WIDTH) and tensor.is_contiguous()
    slots.reserve(4, 1000)
    assert slots.worth_reading(41) == 64  # far more places than these rows have are not looked at


def test_a_pass_makes_room_for_what_it_writes() -> None:
    base = tiny_base()
    passes = Passes(base, 2)
    ids = torch.arange(50)[None]
    places = torch.arange(50)[None]
    first = passes.logits([None], [0], ids, places, places, torch.ones_like(ids, dtype=torch.bool))
    assert passes.slots.capacity == 64
    assert torch.allclose(first, base.forward(ids, torch.ones_like(ids))[0], atol=1e-4)
