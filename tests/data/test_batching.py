"""Which rows go together, and the tensors they become."""

from __future__ import annotations

import math
from dataclasses import replace

import hypothesis
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tunescope.data import batching
from tunescope.data.batching import BatchOrder, collate
from tunescope.data.encoding import Encoded
from tunescope.data.packing import Packed, by_length


def padding(lengths: tuple[int, ...], batches: list[list[int]]) -> int:
    return sum(len(batch) * max(lengths[i] for i in batch) - sum(lengths[i] for i in batch) for batch in batches)


# The order


@given(
    lengths=st.lists(st.integers(1, 500), min_size=1, max_size=200).map(tuple),
    batch_size=st.integers(1, 40),
    seed=st.integers(0, 2**63 - 1),
    epoch=st.integers(0, 5),
)
def test_every_row_once_an_epoch(lengths: tuple[int, ...], batch_size: int, seed: int, epoch: int) -> None:
    order = BatchOrder(lengths, batch_size, seed)
    batches = order.epoch(epoch)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    assert len(batches) == order.batches_per_epoch
    assert all(0 < len(batch) <= batch_size for batch in batches)
    assert sum(len(batch) < batch_size for batch in batches) <= 1
    assert batches == BatchOrder(lengths, batch_size, seed).epoch(epoch)
    assert [order.step(epoch * len(batches) + i) for i in range(len(batches))] == batches


LENGTHS = tuple(10 + (i * 7919) % 300 for i in range(400))


def test_epochs_and_seeds_differ() -> None:
    order = BatchOrder(LENGTHS, 8, seed=0)
    assert order.epoch(0) != order.epoch(1)
    assert order.epoch(0) != BatchOrder(LENGTHS, 8, seed=1).epoch(0)
    # Not the same batches in another order either: rows meet others.
    assert {frozenset(batch) for batch in order.epoch(0)}.isdisjoint(frozenset(batch) for batch in order.epoch(1))


def test_rows_of_like_length_go_together() -> None:
    """At most a quarter of the padding that rows in random order would need."""
    random = torch.randperm(len(LENGTHS), generator=torch.Generator().manual_seed(0)).tolist()
    unsorted = [random[i : i + 8] for i in range(0, len(random), 8)]
    for epoch in range(3):
        assert padding(LENGTHS, BatchOrder(LENGTHS, 8, 0).epoch(epoch)) < padding(LENGTHS, unsorted) / 4


def test_long_and_short_batches_come_mixed() -> None:
    longest = [max(LENGTHS[i] for i in batch) for batch in BatchOrder(LENGTHS, 8, 0).epoch(0)]
    first, second = longest[: len(longest) // 2], longest[len(longest) // 2 :]
    assert abs(sum(first) / len(first) - sum(second) / len(second)) < 60
    assert longest != sorted(longest)


def test_order_of_examples() -> None:
    examples = [Encoded([1] * n, [2, 3]) for n in (4, 2, 9)]
    assert BatchOrder.of(examples, 2, 5) == BatchOrder((6, 4, 11), 2, 5)


# Tensors


@st.composite
def encoded(draw: st.DrawFn) -> Encoded:
    """A row with a prompt, a completion, and learned turns somewhere inside the prompt."""
    token = st.integers(-3, 99)
    prompt = draw(st.lists(token, max_size=20))
    completion = draw(st.lists(st.integers(1, 99), min_size=1 if prompt else 2, max_size=6))
    places = sorted(draw(st.sets(st.integers(1, len(prompt) - 1), max_size=4))) if len(prompt) > 2 else []
    earlier = tuple(zip(places[::2], places[1::2], strict=False))
    return Encoded(prompt, completion, number=draw(st.integers(1, 1000)), earlier=earlier)


def learned(example: Encoded) -> list[tuple[int, int]]:
    """(position, token that follows it) of everything learned, one token after the other."""
    tokens = example.prompt + example.completion
    found = []
    for place in range(1, len(tokens)):
        inside = place >= len(example.prompt) or any(begin <= place < end for begin, end in example.earlier)
        if inside:
            found.append((place - 1, tokens[place]))
    return found


def read_back(packed: Packed) -> list[tuple[list[int], list[tuple[int, int]]]]:
    """Each text of a packed batch as its tokens (but the last) and what is learned after which of them."""
    length, found, done = packed.input_ids.shape[1], [], 0
    ids, branch, position = packed.input_ids.flatten(), packed.branch.flatten(), packed.position.flatten()
    for last, count in zip(packed.last.tolist(), packed.lengths.tolist(), strict=True):
        row = last // length * length
        seen = [
            place for place in range(row, row + length)
            if branch[place] == 0 or (branch[place] == branch[last] and branch[last] > 0)
        ]  # fmt: skip
        assert position[seen].tolist() == list(range(len(seen)))
        pairs = zip(
            packed.predictors[done : done + count].tolist(), packed.targets[done : done + count].tolist(), strict=True
        )
        found.append((ids[seen].tolist(), [(int(position[place]), token) for place, token in pairs]))
        done += count
    assert done == packed.targets.numel()
    return found


@pytest.mark.parametrize("worth", [0.0, math.inf], ids=["apart", "shared"])
@hypothesis.example(shared=[], drawn=[Encoded([0, 0], [1]), Encoded([0], [1])])  # a branch of which nothing is computed
@given(shared=st.lists(st.integers(-3, 99), max_size=6), drawn=st.lists(encoded(), min_size=1, max_size=5))
def test_collate_learns_what_one_by_one_would(worth: float, shared: list[int], drawn: list[Encoded]) -> None:
    examples = [
        replace(
            example,
            prompt=shared + example.prompt,
            earlier=tuple((begin + len(shared), end + len(shared)) for begin, end in example.earlier),
        )
        for example in drawn
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batching, "_WORTH", worth)
        batch = collate(examples)
    packed = batch.packed
    for example, (tokens, found) in zip(examples, read_back(packed), strict=True):
        assert tokens == (example.prompt + example.completion)[: len(tokens)]
        assert len(tokens) >= len(example) - 1
        assert found == learned(example)
    assert batch.rows == [example.number for example in examples]
    assert packed.tokens == sum(map(len, examples))
    assert packed.computed == packed.padding + int((packed.branch >= 0).sum())
    if worth and len(examples) > 1:
        # The prefix once, and of each text the rest but its last token.
        prefix = int((packed.branch == 0).sum())
        assert packed.computed == prefix + sum(len(example) - 1 - prefix for example in examples)


def test_what_is_shared_is_laid_out_once_where_it_pays() -> None:
    alike = [Encoded([5, 6, 7, 8, number], [9, 99]) for number in range(4)]
    assert collate(alike).packed.computed == 4 + 4 * 2
    apart = [Encoded([number, 6, 7, 8, 5], [9, 99]) for number in range(4)]
    assert collate(apart).packed.input_ids.shape == (4, 6)
    # Turns that are learned are computed by each text that learns them.
    turns = [Encoded([5, 6, 7, 8, number], [9, 99], earlier=((2, 4),)) for number in range(4)]
    assert collate(turns).packed.branch.eq(0).sum() == 2


def test_texts_of_unlike_lengths_need_no_padding_behind_a_prefix() -> None:
    packed = collate([Encoded([1, 2, 3], [4] * count) for count in (1, 20)]).packed
    assert packed.padding == 0 and packed.computed == 3 + 0 + 19


def test_the_stop_token_is_a_target() -> None:
    batch = collate([Encoded([5, 6, 7], [8, 99]), Encoded([5, 6, 7, 8, 9], [1, 99])])
    assert batch.packed.targets.tolist() == [8, 99, 1, 99]


def test_a_text_without_a_prompt_learns_all_but_its_first_token() -> None:
    packed = collate([Encoded([], [1, 2, 3])]).packed
    assert (packed.predictors.tolist(), packed.targets.tolist()) == ([0, 1], [2, 3])


def test_to_another_device_moves_every_tensor() -> None:
    batch = collate([Encoded([5, 6], [8, 99], number=4)]).to(torch.device("meta"))
    tensors = [value for value in vars(batch.packed).values() if isinstance(value, torch.Tensor)]
    assert len(tensors) == 7 and all(tensor.device.type == "meta" for tensor in tensors)
    assert batch.rows == [4]


@given(lengths=st.lists(st.integers(0, 50), max_size=20), budget=st.integers(1, 100))
def test_by_length_takes_each_text_once_within_the_budget(lengths: list[int], budget: int) -> None:
    groups = list(by_length(lengths, budget))
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    for group in groups:
        assert len(group) == 1 or len(group) * max(lengths[i] for i in group) <= budget
