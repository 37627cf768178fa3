"""Parts of a data set: what is trained on and what is held out, and whether they share rows."""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Hashable, Sequence
from fractions import Fraction

from tunescope.data.rows import Row
from tunescope.errors import DataError


def split(
    total: int, labels: Sequence[Hashable] | None, held_out: float | int, seed: int
) -> tuple[list[int], list[int]]:
    """Hold out a part of the rows, the same for the same seed.

    With labels, each class is held out in proportion, and where the counts allow it every class of two rows or more
    stands on both sides; a class of one row stays in training.

    Args:
        total: how many rows there are.
        labels: the class of each row, or None for a plain random split.
        held_out: how much: a fraction between 0 and 1 (float), or a number of rows (int).
        seed: of the choice.

    Returns:
        Indices of the rows to train on and of those held out, each in ascending order; together all rows.

    Raises:
        DataError: nothing would be left on one of the sides.
    """
    wanted = round(held_out * total) if isinstance(held_out, float) else held_out
    if isinstance(held_out, float) and 0 < held_out < 1 and total > 1:
        wanted = min(max(wanted, 1), total - 1)  # a small set still has both sides
    if not 0 < wanted < total:
        raise DataError(f"Cannot hold out {held_out} of {total} rows: both sides need at least one row.")
    generator = random.Random(seed)
    groups: dict[Hashable, list[int]] = {}
    for index in range(total):
        groups.setdefault(None if labels is None else labels[index], []).append(index)
    chosen: list[int] = []
    for members, count in zip(groups.values(), _shares([*map(len, groups.values())], wanted), strict=True):
        chosen += generator.sample(members, count)
    held = set(chosen)
    return [index for index in range(total) if index not in held], sorted(held)


def nested(rows: Sequence[Row], labels: Sequence[Hashable] | None, size: int, seed: int) -> list[Row]:
    """The first ``size`` of the rows in an order by the seed in which every beginning is stratified.

    So a smaller subset lies in every larger one, and holds the labels in their proportions, one of each at first.

    Args:
        rows: to choose from.
        labels: of a classification task; None for free texts.
        size: how many.
        seed: of the order.
    """
    order = random.Random(seed).sample(range(len(rows)), len(rows))
    if labels is None:
        return [rows[i] for i in order[:size]]
    members: dict[Hashable, list[int]] = {}
    for index in order:
        members.setdefault(rows[index].completion, []).append(index)
    # The k-th of n rows of a label stands at (k + 1/2) / n of the whole, but each label's first stands before all.
    places = [
        (-1.0 if rank == 0 else (rank + 0.5) / len(found), index)
        for found in members.values()
        for rank, index in enumerate(found)
    ]
    return [rows[index] for _, index in sorted(places)[:size]]


def overlap(train_texts: Sequence[str], test_texts: Sequence[str]) -> list[int]:
    """Indices of test inputs that also stand in training, whatever their labels.

    Compared without regard to case, spacing and Unicode's several ways to write the same character.
    """
    known = {_normal(text) for text in train_texts}
    return [index for index, text in enumerate(test_texts) if _normal(text) in known]


def _normal(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _shares(sizes: list[int], wanted: int) -> list[int]:
    """How many rows each class gives: in proportion, by largest remainder, within what keeps it on both sides.

    The bounds give way where they contradict the wanted sum: there are fewer places than classes, or so many single
    rows that some of them have to be held out.
    """
    total = sum(sizes)
    ideal = [Fraction(wanted * size, total) for size in sizes]
    low = [1 if size > 1 else 0 for size in sizes]
    high = [size - 1 if size > 1 else 0 for size in sizes]
    if sum(low) > wanted:
        low = [0] * len(sizes)
    if sum(high) < wanted:
        high = sizes
    shares = [min(max(int(want), least), most) for want, least, most in zip(ideal, low, high, strict=True)]
    while missing := wanted - sum(shares):
        step = 1 if missing > 0 else -1
        able = [i for i in range(len(sizes)) if (shares[i] < high[i] if step > 0 else shares[i] > low[i])]
        able.sort(key=lambda i: (step * (shares[i] - ideal[i]), -sizes[i]))  # who lacks, or exceeds, most comes first
        for i in able[: abs(missing)]:
            shares[i] += step
    return shares
