"""Batches: which rows go together, and how they become tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence, Sized
from dataclasses import dataclass, fields, replace
from itertools import accumulate
from typing import Any, Self

import torch

from tunescope.data.encoding import Encoded, EncodedPreference
from tunescope.data.packing import Branch, Group, Packed, pack
from tunescope.data.rankings import untied
from tunescope.data.tokenizing import common_prefix

_MOVED = (torch.Tensor, Packed)
# Batches a window: rows are sorted by length inside it. Larger windows pad less and shuffle less.
_WINDOW = 16
# Texts are laid out behind a shared prefix where that leaves at most this share of the tokens: moving queries and keys
# between the two layouts costs about as much as a few percent of them.
_WORTH = 0.95


@dataclass
class Batch:
    """Texts of a step, packed.

    Attributes:
        packed: their tokens.
        rows: the rows' line numbers, for messages.
    """

    packed: Packed
    rows: list[int]

    @property
    def units(self) -> int:
        """How many of what ``Objective.unit`` names it has."""
        return len(self.rows)

    def to(self, device: torch.device) -> Self:
        """The same batch on another device."""
        values: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        moved: dict[str, Any] = {n: value.to(device) for n, value in values.items() if isinstance(value, _MOVED)}
        return replace(self, **moved)


@dataclass
class PairBatch(Batch):
    """Completions that are compared, those of one prompt a group: the prompt once, and behind it each completion once.

    A pair is two completions of different rank in one group. What has a number a pair has the shape [pairs].

    Attributes:
        sizes: how many completions each prompt has.
        ranks: [completions] of each among those of its prompt; 1 is the best.
        pairs: [2, pairs] indices of the better completion and of the worse one, prompt by prompt.
        counts: how many pairs each prompt has.
        weights: [pairs] 1 / the pairs of its prompt: each prompt counts once.
        margins: [pairs] how much better the first one is; nan where it is not given.
        reference: [completions] log-probabilities under the reference; nan where they are not known.
    """

    sizes: list[int]
    ranks: torch.Tensor
    pairs: torch.Tensor
    counts: list[int]
    weights: torch.Tensor
    margins: torch.Tensor
    reference: torch.Tensor

    @property
    def units(self) -> int:
        """Pairs."""
        return len(self.weights)

    @property
    def lengths(self) -> torch.Tensor:
        """[completions] tokens of each."""
        return self.packed.lengths


def collate(examples: Sequence[Encoded], *, ends: bool = False) -> Batch:
    """Texts of prompt and completion, with the completion (and earlier assistant turns) learned.

    What all of them begin with, up to the first token that is learned, is laid out once, where that saves enough of the
    tokens to be computed; else each text is a row.

    Args:
        examples: at least one.
        ends: see ``pack``.
    """
    texts = [example.prompt + example.completion for example in examples]
    shared = _shared(examples, texts)
    alone = len(texts) * max(map(len, texts))
    if shared + sum(len(text) - shared for text in texts) <= _WORTH * alone:
        groups = [Group(texts[0][:shared], tuple(_branch(e, t, shared) for e, t in zip(examples, texts, strict=True)))]
    else:
        groups = [Group((), (_branch(e, t, 0),)) for e, t in zip(examples, texts, strict=True)]
    return Batch(pack(groups, ends=ends), [example.number for example in examples])


def _shared(examples: Sequence[Encoded], texts: Sequence[list[int]]) -> int:
    """How many tokens all texts begin with, none of them learned."""
    first, last = min(texts), max(texts)  # in order of tokens: all others lie between these two
    learned = (min([len(e.prompt), *(begin for begin, _ in e.earlier)]) for e in examples)
    return min(common_prefix(first, last), *learned, *(len(text) - 1 for text in texts))


def _branch(example: Encoded, text: list[int], shared: int) -> Branch:
    spans = (*example.earlier, (len(example.prompt), len(text)))
    return Branch(text[shared:], tuple((begin - shared, end - shared) for begin, end in spans))


def collate_pairs(examples: Sequence[EncodedPreference]) -> PairBatch:
    """Pairs and rankings packed, one a group."""
    sizes = [len(example.completions) for example in examples]
    compared = [untied(example.ranks) for example in examples]
    firsts = accumulate(sizes[:-1], initial=0)
    pairs = [(first + i, first + j) for first, found in zip(firsts, compared, strict=True) for i, j in found]
    counts = [len(found) for found in compared]
    pairs_of = torch.tensor(counts)
    margins = torch.tensor([math.nan if example.margin is None else example.margin for example in examples])
    return PairBatch(
        packed=pack([Group.of(example.prompt, example.completions) for example in examples]),
        rows=[example.number for example in examples],
        sizes=sizes,
        ranks=torch.tensor([rank for example in examples for rank in example.ranks]),
        pairs=torch.tensor(pairs).view(-1, 2).T,
        counts=counts,
        weights=(1 / pairs_of).repeat_interleave(pairs_of),
        margins=margins.repeat_interleave(pairs_of),
        reference=torch.tensor([each for e in examples for each in e.reference or [math.nan] * len(e.completions)]),
    )


@dataclass(frozen=True)
class BatchOrder:
    """The order of the batches: a function of the seed alone, so that a resumed run sees the same ones.

    Each epoch shuffles the rows, sorts them by length inside windows of some batches, and shuffles the batches.

    Args:
        lengths: tokens of each row.
        batch_size: rows a batch; the last batch of an epoch takes what is left.
        seed: of the whole run.
    """

    lengths: tuple[int, ...]
    batch_size: int
    seed: int

    @classmethod
    def of(cls, examples: Sequence[Sized], batch_size: int, seed: int) -> BatchOrder:
        """Order of these examples."""
        return cls(tuple(len(example) for example in examples), batch_size, seed)

    @property
    def batches_per_epoch(self) -> int:
        """Batches that one pass over the rows takes."""
        return -(-len(self.lengths) // self.batch_size)

    def epoch(self, epoch: int) -> list[list[int]]:
        """Row indices of each batch of an epoch."""
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + epoch) % 2**63)
        order = torch.randperm(len(self.lengths), generator=generator).tolist()
        span = self.batch_size * _WINDOW
        batches = []
        for begin in range(0, len(order), span):
            window = sorted(order[begin : begin + span], key=lambda i: self.lengths[i])
            batches += [window[i : i + self.batch_size] for i in range(0, len(window), self.batch_size)]
        shuffled = torch.randperm(len(batches), generator=generator).tolist()
        return [batches[i] for i in shuffled]

    def step(self, step: int) -> list[int]:
        """Row indices of the batch of optimizer step ``step``, from 0."""
        epoch, index = divmod(step, self.batches_per_epoch)
        return self.epoch(epoch)[index]
