"""Reward models: a number for how good a completion is, learned from pairs or from ranked responses (Ouyang et al.
2022, arXiv:2203.02155).

    r(x, y) = w · h

with h [hidden] what the vocabulary head would read at the last token of the completion, its stop token, and w [hidden]
a ``Head`` with one output. ``reward_scores`` (``inference.rewards``) scores texts with what was trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field

from tunescope.base import Base
from tunescope.data.batching import PairBatch
from tunescope.methods import Customized
from tunescope.methods.effects import Effect
from tunescope.objectives import losses
from tunescope.objectives.heads import Head
from tunescope.objectives.objective import Loss
from tunescope.objectives.preference import PreferenceObjective

HEAD = "reward"


class Reward(PreferenceObjective):
    """Give chosen completions a higher reward than rejected ones."""

    name: ClassVar[str] = "reward"

    loss: Literal["bradley-terry", "margin", "scaled", "plackett-luce"] = "bradley-terry"
    """bradley-terry compares two at a time, plackett-luce a prompt's responses as a whole. Pairs' margins count with
    margin, which subtracts them from the difference, and with scaled, as the pairs' weights."""
    centering: float = Field(0.0, ge=0)
    """Weight of (r_chosen + r_rejected)², which keeps rewards near zero. 0.01 is its paper's choice."""

    @property
    def uses_margins(self) -> bool:
        """Two variants of Bradley-Terry do."""
        return self.loss in ("margin", "scaled")

    def effects(self, base: Base, generator: torch.Generator, rows: Sequence[Any] = ()) -> dict[str, Effect]:
        """The head."""
        return {f"head.{HEAD}": Head(base.hidden_size)}

    def rewards(self, customized: Customized, batch: PairBatch, hidden: torch.Tensor) -> torch.Tensor:
        """The head's output at the completions' last tokens."""
        return customized.customization.heads[HEAD](hidden[batch.packed.last])[..., 0]

    def compute_loss(self, customized: Customized, batch: PairBatch, hidden: torch.Tensor) -> Loss:
        """The prompts' losses, summed."""
        rewards = self.rewards(customized, batch, hidden)
        chosen, rejected = rewards[batch.pairs]
        if self.loss == "plackett-luce":
            lists = zip(rewards.split(batch.sizes), batch.ranks.split(batch.sizes), strict=True)
            total = torch.stack([losses.plackett_luce_loss(scores, ranks) for scores, ranks in lists]).sum()
        else:
            total = (batch.weights * self._losses(chosen - rejected, batch.margins)).sum()
        if self.centering:
            total = total + self.centering * (batch.weights * losses.centering_loss(chosen, rejected)).sum()
        return Loss(total, self.measured(rewards, batch))

    def _losses(self, difference: torch.Tensor, margins: torch.Tensor) -> torch.Tensor:
        """[pairs]."""
        if self.loss == "scaled":
            return losses.scaled_bradley_terry_loss(difference, margins)
        return losses.bradley_terry_loss(difference, margins if self.loss == "margin" else 0.0)
