"""Batches: which rows go together, and how they become tensors."""

from __future__ import annotations

from collections.abc import Sequence, Sized
from dataclasses import dataclass, fields, replace

import torch

from tunescope.data.template import Encoded

# Batches a window: rows are sorted by length inside it. Larger windows pad less and shuffle less.
_WINDOW = 16


@dataclass
class Batch:
    """Sequences side by side, padded on the right.

    Attributes:
        input_ids: [batch, length]; negative ids are virtual tokens.
        attention_mask: [batch, length], 1 where a token is real.
        keep: [batch, length] boolean, the positions whose next token is learned.
        targets: [kept] the token that follows each kept position, in the order of the flattened mask.
        rows: the rows' line numbers, for messages.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    keep: torch.Tensor
    targets: torch.Tensor
    rows: list[int]

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""
        tensors = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "rows"}
        return replace(self, **{name: tensor.to(device) for name, tensor in tensors.items()})

    @property
    def tokens(self) -> int:
        """Real tokens in the batch, padding not counted."""
        return int(self.attention_mask.sum())

    @property
    def padded_tokens(self) -> int:
        """Tokens computed, padding counted."""
        return self.input_ids.numel()


def collate(examples: Sequence[Encoded]) -> Batch:
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
    return Batch(ids, mask, keep, targets, [example.number for example in examples])


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
