"""Key-value memory: as much as rows need, and rows that keep what is theirs while others come, grow and go."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.inference.mix import customized
from tests.tiny import tiny_base

from tunescope.inference import Engine, Sampling
from tunescope.inference.passes import Passes
from tunescope.inference.slots import BLOCK, Slots

HEADS, WIDTH = 2, 4


def write(slots: Slots, rows: dict[int, torch.Tensor], lengths: dict[int, int]) -> None:
    """Give each row so many positions; what is new is written, keys as they are and values negated."""
    before = {row: slots._slots[row].used if row in slots._slots else 0 for row in lengths}
    slots.arrange(list(lengths), list(lengths.values()))
    for row in sorted(lengths, key=slots.order):
        places = torch.arange(before[row], lengths[row])[None]
        if places.numel():
            new = rows[row][None, :, before[row] : lengths[row]]
            for part in slots.access([row], places, torch.device("cpu")).parts:
                part.exchange(0, new, -new)


LENGTHS = st.integers(1, 40) | st.integers(100, 900)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), steps=st.integers(1, 12))
def test_rows_stay_as_they_are_while_others_come_and_go_and_memory_is_what_they_need(
    data: st.DataObject, steps: int
) -> None:
    slots, rows, lengths, made = Slots(1), {}, {}, 0
    for _ in range(steps):
        for _ in range(data.draw(st.integers(0, 6), label="rows that come")):
            made += 1
            rows[made], lengths[made] = torch.randn(HEADS, 1000, WIDTH), data.draw(LENGTHS, label="length")
            write(slots, rows, {made: lengths[made]})
        for row in data.draw(st.lists(st.sampled_from(sorted(lengths)), unique=True)) if lengths else []:
            slots.close(row)
            del lengths[row]
        if lengths and data.draw(st.booleans(), label="all together"):
            lengths = {row: length + 1 for row, length in lengths.items()}
            write(slots, rows, lengths)
        slots.tidy()
        assert slots.used == sum(lengths.values())
        assert slots.allocated <= 1.25 * slots.used + BLOCK
        assert slots.nbytes == slots.allocated * HEADS * WIDTH * 2 * 4
        for row, length in lengths.items():
            keys, values = slots.keep(row, length).layers[0]
            assert torch.equal(keys, rows[row][:, :length]) and torch.equal(values, -keys)


def test_memory_is_for_the_rows_there_are_at_every_step_of_an_engine() -> None:
    base = tiny_base()
    engine = Engine(base, slots=12)
    engine.load("lora", customized("lora"))
    drawn = torch.Generator().manual_seed(3)

    def number(most: int) -> int:
        return int(torch.randint(1, most, (), generator=drawn))

    slots, steps = engine.scheduler.passes.slots, 0
    for _ in range(60):
        length = number(400) if number(5) == 1 else number(30)
        sampling = Sampling(max_new_tokens=number(60), temperature=1.0, seed=number(1000))
        engine.submit_ids([number(250) for _ in range(length)], "lora" if number(3) == 1 else None, sampling)
        for _ in range(number(6)):
            engine.step()
            steps += 1
            assert slots.used == sum(job.placed for job in engine.scheduler.rows)
            assert slots.allocated <= 1.25 * slots.used + BLOCK
    while engine.step():
        assert slots.allocated <= 1.25 * slots.used + BLOCK
    assert steps > 100 and slots.allocated == 0


def test_rows_of_like_length_share_an_arena_and_a_long_one_does_not_lengthen_the_others() -> None:
    base = tiny_base()
    engine = Engine(base, slots=9)
    sampling = Sampling(max_new_tokens=60, min_new_tokens=60)
    for i in range(8):
        engine.submit_ids([5] * (16 + 2 * i), None, sampling)
    arenas = engine.scheduler.passes.slots._arenas
    while any(len(job.written) < 5 for job in engine.scheduler.rows) or not engine.scheduler.rows:
        engine.step()
    assert len(engine.scheduler.passes.slots._arenas) == 1
    long = engine.submit_ids([7] * 400, None, sampling)
    while not long.tokens > 5:
        engine.step()
    arenas = sorted(engine.scheduler.passes.slots._arenas, key=lambda arena: arena.capacity)
    assert [len(arena.members) for arena in arenas] == [8, 1]
    assert arenas[0].capacity < 150  # the long row's 400 positions are not read for the short ones


def test_rows_of_several_arenas_are_read_where_they_lie() -> None:
    slots = Slots(1)
    lengths = {1: 30, 2: 32, 3: 900}
    write(slots, {row: torch.randn(HEADS, 1000, WIDTH) for row in lengths}, lengths)
    slots.arrange([1, 2, 3], [31, 33, 901])
    access = slots.access([1, 2, 3], torch.tensor([[30], [32], [900]]), torch.device("cpu"))
    assert [part.rows for part in access.parts] == [slice(0, 2), slice(2, 3)]
    for part, rows in zip(access.parts, (2, 1), strict=True):
        new = torch.zeros(rows, HEADS, 1, WIDTH)
        assert all(tensor.is_contiguous() for tensor in part.exchange(0, new, new))


def test_what_a_row_leaves_behind_does_not_reach_the_next() -> None:
    slots = Slots(1)
    lost = torch.full((HEADS, 1000, WIDTH), torch.nan)
    rows = {1: torch.randn(HEADS, 1000, WIDTH), 2: lost, 3: torch.randn(HEADS, 1000, WIDTH)}
    write(slots, rows, {1: 60, 2: 60})
    slots.arrange([1, 2], [61, 61])
    slots.close(2)
    write(slots, rows, {3: 40})
    slots.arrange([1, 3], [61, 41])
    assert len(slots._arenas) == 1  # the third row has the second one's lane
    assert all(t.isfinite().all() for layer in slots._arenas[0].layers if layer for t in layer)


@pytest.mark.parametrize("arch", ["llama", "gpt2", "gemma3_text"])
@pytest.mark.parametrize("bytes_of_a_weight", [0, 1000])
def test_logits_are_the_same_however_rows_lie(
    arch: str, bytes_of_a_weight: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of several arenas in one pass: by parts in the Llama path, copied together or a pass each in the other."""
    base = tiny_base(arch)
    monkeypatch.setattr(type(base), "parameters", bytes_of_a_weight * 1_000_000)
    passes = Passes(base, 4)
    lengths = [3, 300, 5, 120]
    text = torch.randint(0, 250, (4, 301), generator=torch.Generator().manual_seed(1))
    found = []
    with torch.inference_mode():
        for begin in (0, 1):
            length = [n if not begin else 1 for n in lengths]
            offsets = torch.arange(max(length))
            places = torch.tensor(lengths)[:, None] * begin + offsets
            real = offsets < torch.tensor(length)[:, None]
            ids = text.gather(1, places.clamp(max=300))
            keep = offsets == torch.tensor(length)[:, None] - 1
            places = torch.where(real, places, -1)
            hidden = passes.hidden([None] * 4, [0, 1, 2, 3], ids, places.clamp(min=0), places, keep)
            found.append(passes.logits(hidden))
        assert len(passes.slots._arenas) > 1
        for row, length in enumerate(lengths):
            ids = text[row : row + 1, : length + 1]
            alone = base.forward(ids, torch.ones_like(ids))[0, -2:]
            assert torch.allclose(torch.stack([found[0][row], found[1][row]]), alone, atol=1e-4)


def test_a_pass_makes_room_for_what_it_writes() -> None:
    base = tiny_base()
    passes = Passes(base, 2)
    ids = torch.arange(50)[None]
    places = torch.arange(50)[None]
    with torch.inference_mode():
        keep = torch.ones_like(ids, dtype=torch.bool)
        first = passes.logits(passes.hidden([None], [0], ids, places, places, keep))
    assert passes.slots.used == 50 <= passes.slots.allocated
    assert torch.allclose(first, base.forward(ids, torch.ones_like(ids))[0], atol=1e-4)
