"""Batches: which rows go together, and how they become tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence, Sized
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch

from tunescope.data.encoding import Encoded, EncodedPair

# Batches a window: rows are sorted by length inside it. Larger windows pad less and shuffle less.
_WINDOW = 16


@dataclass
class Batch:
    """Tokens side by side, padded on the right.

    Attributes:
        input_ids: [batch, length]; negative ids are virtual tokens.
        rows: the rows' line numbers, for messages.
    """

    input_ids: torch.Tensor
    rows: list[int]

    def to(self, device: torch.device) -> Self:
        """The same batch on another device."""
        tensors: dict[str, Any] = {f.name: getattr(self, f.name).to(device) for f in fields(self) if f.name != "rows"}
        return replace(self, **tensors)

    @property
    def real(self) -> torch.Tensor:
        """[batch, length] boolean, where a token is no padding."""
        raise NotImplementedError

    @property
    def tokens(self) -> int:
        """Real tokens in the batch, padding not counted."""
        return int(self.real.sum())

    @property
    def padded_tokens(self) -> int:
        """Tokens computed, padding counted."""
        return self.input_ids.numel()


@dataclass
class TextBatch(Batch):
    """One text a row.

    Attributes:
        attention_mask: [batch, length], 1 where a token is real.
        keep: [batch, length] boolean, the positions whose next token is learned.
        targets: [kept] the token that follows each kept position, in the order of the flattened mask.
    """

    attention_mask: torch.Tensor
    keep: torch.Tensor
    targets: torch.Tensor

    @property
    def real(self) -> torch.Tensor:
        """[batch, length] boolean, where a token is no padding."""
        return self.attention_mask.bool()


@dataclass
class PairBatch(Batch):
    """One pair a row: the prompt once, behind it the chosen completion and the rejected one.

    Each completion sees the prompt and itself, at the positions it would have alone, and never the other one (see
    ``attention.branch_mask``), so that the prompt is computed once for both. Flat positions count through the
    flattened [batch, length]. What has a number a completion has the shape [2, pairs], chosen first.

    Attributes:
        branch: [batch, length], 0 for the prompt, 1 for chosen, 2 for rejected, -1 for padding.
        position: [batch, length], the position of each token in its own text.
        targets: [tokens] the completions' tokens, all chosen ones before all rejected ones.
        predictors: [tokens] flat position after which each target comes; the prompt's last one serves both completions.
        last: [2, pairs] flat position of each completion's last token.
        lengths: [2, pairs] tokens of each completion.
        margins: [pairs] how much better the chosen one is; nan where nobody said.
        reference: [2, pairs] log-probabilities under the reference; nan where they are not known.
    """

    branch: torch.Tensor
    position: torch.Tensor
    targets: torch.Tensor
    predictors: torch.Tensor
    last: torch.Tensor
    lengths: torch.Tensor
    margins: torch.Tensor
    reference: torch.Tensor

    @property
    def real(self) -> torch.Tensor:
        """[batch, length] boolean, where a token is no padding."""
        return self.branch >= 0


def collate(examples: Sequence[Encoded]) -> TextBatch:
    """Sequences of prompt and completion, with the completion (and earlier assistant turns) learned.

    Padding repeats token 0 under a mask of 0: an id that means something else to some model is never looked at.
    """
    length = max(len(example) for example in examples)
    ids = torch.zeros(len(examples), length, dtype=torch.long)
    mask = torch.zeros_like(ids)
    keep = torch.zeros(len(examples), length, dtype=torch.bool)
    for i, example in enumerate(examples):
        tokens = example.prompt + example.completion
        ids[i, : len(tokens)] = torch.tensor(tokens)
        mask[i, : len(tokens)] = 1
        # Position t predicts token t + 1; a text without a prompt cannot have its first token predicted.
        keep[i, max(len(example.prompt) - 1, 0) : len(tokens) - 1] = True
        for begin, end in example.earlier:
            keep[i, max(begin - 1, 0) : end - 1] = True
    targets = ids.roll(-1, dims=1)[keep]
    return TextBatch(ids, [example.number for example in examples], mask, keep, targets)


def collate_pairs(examples: Sequence[EncodedPair]) -> PairBatch:
    """Pairs packed, one a row."""
    length, count = max(map(len, examples)), len(examples)
    ids = torch.zeros(count, length, dtype=torch.long)
    branch, position = torch.full_like(ids, -1), torch.zeros_like(ids)
    last, lengths = torch.zeros(2, count, dtype=torch.long), torch.zeros(2, count, dtype=torch.long)
    targets: tuple[list[int], list[int]] = ([], [])
    predictors: tuple[list[int], list[int]] = ([], [])
    for i, example in enumerate(examples):
        row, prompt = i * length, len(example.prompt)
        ids[i, : len(example)] = torch.tensor(example.prompt + example.chosen + example.rejected)
        branch[i, :prompt], position[i, :prompt] = 0, torch.arange(prompt)
        begin = prompt
        for side, completion in enumerate((example.chosen, example.rejected)):
            end = begin + len(completion)
            branch[i, begin:end] = side + 1
            position[i, begin:end] = torch.arange(prompt, prompt + len(completion))
            targets[side].extend(completion)
            predictors[side].extend([row + prompt - 1, *range(row + begin, row + end - 1)])
            last[side, i], lengths[side, i] = row + end - 1, len(completion)
            begin = end
    unknown = (math.nan, math.nan)
    return PairBatch(
        input_ids=ids,
        rows=[example.number for example in examples],
        branch=branch,
        position=position,
        targets=torch.tensor(targets[0] + targets[1]),
        predictors=torch.tensor(predictors[0] + predictors[1]),
        last=last,
        lengths=lengths,
        margins=torch.tensor([math.nan if e.margin is None else e.margin for e in examples]),
        reference=torch.tensor([unknown if e.reference is None else e.reference for e in examples]).T,
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
