"""What an objective is: which examples it wants, and the loss it minimizes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch

from tunescope.base import Base
from tunescope.data.batching import Batch
from tunescope.data.rows import Row
from tunescope.data.template import Encoder
from tunescope.settings import Settings


class Objective(Settings, ABC):
    """What a customization is trained for. Orthogonal to the method: every trainable method works with each.

    The loop cuts an optimizer step's examples into parts. It divides the sum of the parts' ``loss`` by the sum of their
    ``weight``, so the step is the same however it was cut.
    """

    name: ClassVar[str]

    @abstractmethod
    def examples(self, rows: Sequence[Row], encoder: Encoder) -> list[Any]:
        """The rows as this objective's examples, each with a length in tokens."""

    @abstractmethod
    def collate(self, examples: Sequence[Any]) -> Batch:
        """Examples as one batch of tensors."""

    @abstractmethod
    def weight(self, batch: Batch) -> int:
        """How much the batch counts in the mean: trained tokens, or pairs."""

    @abstractmethod
    def loss(self, base: Base, batch: Batch) -> torch.Tensor:
        """The loss summed over what ``weight`` counts, a scalar in float32."""
