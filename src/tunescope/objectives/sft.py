"""Supervised fine-tuning: make the completion likely (the next-token cross-entropy of its tokens)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

import torch

from tunescope.data.batching import Batch, collate
from tunescope.data.encoding import Encoded, Encoder
from tunescope.data.reading import Table
from tunescope.data.rows import Row, label_set, to_rows
from tunescope.methods import Customized
from tunescope.objectives.forward import target_logprobs
from tunescope.objectives.objective import Loss, Objective


class SFT(Objective):
    """Learn the completions and nothing of the prompts."""

    name: ClassVar[str] = "sft"

    def rows(
        self, table: Table, pattern: str | None, skip_bad: int, on_note: Callable[[str], None] = lambda note: None
    ) -> list[Row]:
        """Prompts with completions."""
        return to_rows(table, pattern, skip_bad=skip_bad, on_note=on_note)

    def labels(self, rows: Sequence[Row]) -> tuple[str, ...] | None:
        """Found in the completions."""
        return label_set(rows)

    def examples(self, rows: Sequence[Row], encoder: Encoder) -> list[Encoded]:
        """Every row that fits."""
        return encoder.encode_all(rows)

    def collate(self, examples: Sequence[Encoded]) -> Batch:
        """The rows behind the prefix that they share, where that pays."""
        return collate(examples)

    def weight(self, batch: Batch) -> int:
        """Trained tokens."""
        return batch.packed.targets.numel()

    def compute_loss(self, customized: Customized, batch: Batch, hidden: torch.Tensor) -> Loss:
        """Cross-entropy of the trained tokens in nats; the vocabulary head computes their positions only."""
        return Loss(-target_logprobs(customized.base, batch.packed, hidden).sum())
