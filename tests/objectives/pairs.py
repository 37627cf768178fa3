"""Pairs, rankings and rated rows for tests of objectives: separable ones as rows, and drawn ones as tokens."""

from __future__ import annotations

import torch

from tunescope.data.encoding import EncodedPair
from tunescope.data.pairs import Pair
from tunescope.data.rankings import EncodedRanking, Ranking
from tunescope.data.rows import Row

PAIRS = [
    Pair(({"role": "user", "content": f"word {i}"},), "yes" + "!" * (i % 3), "no" + "." * (i % 4), i + 1, 0.5 + i % 3)
    for i in range(12)
]
RANKINGS = [
    Ranking(
        pair.messages,
        (pair.chosen, "yes?", "well" * (i % 2 + 1), pair.rejected),
        ((1, 2, 2, 3), (1, 2, 3, 4))[i % 2],
        i + 1,
    )
    for i, pair in enumerate(PAIRS)
]
RATED = [
    Row(pair.messages, ("yes" if i % 2 else "no") + "!" * (i % 5), i + 1).with_attributes(
        {"mood": 4 * (i % 2), "length": i % 5} if i % 4 else {"length": i % 5}
    )
    for i, pair in enumerate(PAIRS)
]


def encoded_rankings(virtual: int = 0, seed: int = 0) -> list[EncodedRanking]:
    """Rankings of drawn tokens, of two to five completions, with and without ties, in any order."""
    generator = torch.Generator().manual_seed(seed)

    def some(length: int) -> list[int]:
        return torch.randint(0, 256, (length,), generator=generator).tolist()

    lead = [-1 - i for i in range(virtual)]
    ranks = ((2, 1, 3), (1, 1, 2, 4, 2), (2, 1), (1, 2, 2, 2))
    return [
        EncodedRanking(
            [*lead, *some(14 + 5 * i)],
            [some(3 + (5 * i + 7 * k) % 11) for k in range(len(each))],
            each,
            number=i + 1,
            reference=tuple(-20.0 - 3 * i + 2 * k for k in range(len(each))),
        )
        for i, each in enumerate(ranks)
    ]


def encoded_pairs(count: int = 4, virtual: int = 0, seed: int = 0) -> list[EncodedPair]:
    """Pairs of drawn tokens, no two of a length, longer than a sliding window."""
    generator = torch.Generator().manual_seed(seed)

    def some(length: int) -> list[int]:
        return torch.randint(0, 256, (length,), generator=generator).tolist()

    lead = [-1 - i for i in range(virtual)]
    return [
        EncodedPair(
            [*lead, *some(14 + 5 * i)],
            some(3 + 4 * i),
            some(18 - 3 * i),
            number=i + 1,
            margin=0.5 * i,
            reference=(-20.0 - i, -30.0 + 2 * i),
        )
        for i in range(count)
    ]
