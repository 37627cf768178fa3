from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunescope.data.rows import Row
from tunescope.data.splitting import nested, overlap, split
from tunescope.errors import DataError


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[int], int]:
    labels = draw(st.lists(st.integers(0, 6), min_size=2, max_size=80))
    return labels, draw(st.integers(1, len(labels) - 1))


@given(cases(), st.integers(0, 99))
def test_every_row_is_on_one_side_and_the_count_is_kept(case: tuple[list[int], int], seed: int) -> None:
    labels, count = case
    train, held = split(len(labels), labels, count, seed)
    assert sorted(train + held) == list(range(len(labels)))
    assert len(held) == count
    assert (train, held) == split(len(labels), labels, count, seed)
    assert train == sorted(train)
    assert held == sorted(held)


@given(cases())
def test_classes_are_held_out_in_proportion_and_stand_on_both_sides(case: tuple[list[int], int]) -> None:
    labels, count = case
    sizes = Counter(labels)
    _, held = split(len(labels), labels, count, seed=0)
    shares = Counter(labels[index] for index in held)
    shared = [label for label, size in sizes.items() if size > 1]
    if len(shared) <= count <= sum(sizes[label] - 1 for label in shared):
        assert all(1 <= shares[label] < sizes[label] for label in shared)
        assert all(shares[label] == 0 for label, size in sizes.items() if size == 1)
    # The bounds move a class by one row, and each such move by at most one row elsewhere.
    assert all(abs(shares[label] - count * size / len(labels)) <= len(sizes) for label, size in sizes.items())


def test_large_classes_are_held_out_exactly_in_proportion() -> None:
    labels = ["a"] * 50 + ["b"] * 30 + ["c"] * 20
    _, held = split(100, labels, 0.2, seed=1)
    assert Counter(labels[index] for index in held) == {"a": 10, "b": 6, "c": 4}


def test_the_seed_decides() -> None:
    assert split(50, None, 0.5, seed=1) != split(50, None, 0.5, seed=2)


def test_many_classes_take_no_time() -> None:
    train, held = split(100_000, list(range(100_000)), 0.3, seed=0)
    assert (len(train), len(held)) == (70_000, 30_000)


def test_a_small_set_still_has_both_sides() -> None:
    train, held = split(2, None, 0.1, seed=0)
    assert (len(train), len(held)) == (1, 1)


@pytest.mark.parametrize(("total", "held_out"), [(5, 0), (5, 5), (5, 1.0), (5, 0.0), (1, 0.5), (0, 0.5)])
def test_an_empty_side_is_refused(total: int, held_out: float) -> None:
    with pytest.raises(DataError, match=f"Cannot hold out {held_out} of {total} rows"):
        split(total, None, held_out, seed=0)


def test_overlap_ignores_case_spacing_and_unicode_forms() -> None:
    train = [
        "Stra\N{LATIN SMALL LETTER SHARP S}e  42",
        "e\N{COMBINING ACUTE ACCENT}t\N{LATIN SMALL LETTER E WITH ACUTE}",
    ]
    assert overlap(train, ["other", " STRASSE 42\n", "\N{LATIN SMALL LETTER E WITH ACUTE}té"]) == [1, 2]


@given(st.lists(st.sampled_from("abcde"), min_size=1, max_size=120), st.integers(0, 99), st.data())
def test_nested_parts_lie_in_each_other_and_hold_the_labels_in_proportion(
    labels: list[str], seed: int, data: st.DataObject
) -> None:
    rows = [Row(({"role": "user", "content": str(i)},), label, i) for i, label in enumerate(labels)]
    small = data.draw(st.integers(1, len(rows)))
    large = data.draw(st.integers(small, len(rows)))
    few, many = (nested(rows, sorted(set(labels)), size, seed) for size in (small, large))
    assert (len(few), len(many)) == (small, large)
    assert many[:small] == few
    counts, whole = Counter(row.completion for row in few), Counter(labels)
    assert len(counts) == min(small, len(whole))  # one of each label before a second of any
    for label, count in counts.items():
        assert abs(count - small * whole[label] / len(labels)) <= len(whole)


def test_nested_parts_of_free_texts_follow_the_seed() -> None:
    rows = [Row(({"role": "user", "content": str(i)},), f"text {i}", i) for i in range(30)]
    assert nested(rows, None, 9, 0) == nested(rows, None, 20, 0)[:9] != nested(rows, None, 9, 1)
