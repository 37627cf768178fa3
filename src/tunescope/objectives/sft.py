"""Supervised fine-tuning: make the completion likely (the next-token cross-entropy of its tokens)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch.nn import functional

from tunescope.base import Base
from tunescope.data.batching import Batch, collate
from tunescope.data.rows import Row
from tunescope.data.template import Encoded, Encoder
from tunescope.objectives.objective import Objective


def cross_entropy_sum(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Summed, not averaged: the mean belongs to whoever knows the count of the whole step.

    Args:
        logits: [tokens, vocabulary], any precision; computed in float32.
        targets: [tokens].

    Returns:
        Scalar, float32, in nats.
    """
    return functional.cross_entropy(logits.float(), targets, reduction="sum")


class SFT(Objective):
    """Learn the completions and nothing of the prompts."""

    name: ClassVar[str] = "sft"

    def examples(self, rows: Sequence[Row], encoder: Encoder) -> list[Encoded]:
        """Every row that fits."""
        return encoder.encode_all(rows)

    def collate(self, examples: Sequence[Encoded]) -> Batch:
        """Padded sequences."""
        return collate(examples)

    def weight(self, batch: Batch) -> int:
        """Trained tokens."""
        return batch.targets.numel()

    def loss(self, base: Base, batch: Batch) -> torch.Tensor:
        """Cross-entropy of the trained tokens, summed; the vocabulary head computes their positions only."""
        logits = base.forward(batch.input_ids, batch.attention_mask, keep=batch.keep)
        return cross_entropy_sum(logits, batch.targets)
