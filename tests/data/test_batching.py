"""Which rows go together, and the tensors they become."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from tunescope.data.batching import BatchOrder, collate
from tunescope.data.encoding import Encoded


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
    completion = draw(st.lists(st.integers(1, 99), min_size=1, max_size=6))
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


@given(st.lists(encoded(), min_size=1, max_size=5))
def test_collate_learns_what_one_by_one_would(examples: list[Encoded]) -> None:
    batch = collate(examples)
    wanted = [(row, place, token) for row, example in enumerate(examples) for place, token in learned(example)]
    assert batch.keep.nonzero().tolist() == [[row, place] for row, place, _ in wanted]
    assert batch.targets.tolist() == [token for _, _, token in wanted]
    for row, example in enumerate(examples):
        length = len(example)
        assert batch.input_ids[row, :length].tolist() == example.prompt + example.completion
        assert batch.attention_mask[row].tolist() == [1] * length + [0] * (batch.input_ids.shape[1] - length)
        assert not batch.keep[row, length - 1 :].any()
    assert batch.rows == [example.number for example in examples]
    assert batch.tokens == sum(map(len, examples))
    assert batch.padded_tokens == len(examples) * max(map(len, examples))


def test_the_stop_token_is_a_target() -> None:
    batch = collate([Encoded([5, 6, 7], [8, 99]), Encoded([5, 6, 7, 8, 9], [1, 99])])
    assert batch.targets.tolist() == [8, 99, 1, 99]


def test_a_text_without_a_prompt_learns_all_but_its_first_token() -> None:
    batch = collate([Encoded([], [1, 2, 3])])
    assert batch.keep.tolist() == [[True, True, False]]
    assert batch.targets.tolist() == [2, 3]


def test_to_another_device_moves_every_tensor() -> None:
    batch = collate([Encoded([5, 6], [8, 99], number=4)]).to(torch.device("meta"))
    tensors = (batch.input_ids, batch.attention_mask, batch.keep, batch.targets)
    assert all(tensor.device.type == "meta" for tensor in tensors)
    assert batch.rows == [4]
