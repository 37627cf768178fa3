"""Reward models: a number for how good a completion is, learned from pairs (Ouyang et al. 2022, arXiv:2203.02155).

    r(x, y) = w · h

with h [hidden] what the vocabulary head would read at the last token of the completion, its stop token, and w [hidden]
a ``Head`` with one output. ``reward_scores`` (``inference.rewards``) scores texts with what was trained.
"""

from __future__ import annotations

from typing import ClassVar, Literal

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

    loss: Literal["bradley-terry", "margin", "scaled"] = "bradley-terry"
    """Whether the pairs' margins count: not at all, subtracted from the difference, or as the pairs' weights."""
    centering: float = Field(0.0, ge=0)
    """Weight of (r_chosen + r_rejected)², which keeps rewards near zero. 0.01 is its paper's choice."""

    @property
    def uses_margins(self) -> bool:
        """All but plain Bradley-Terry."""
        return self.loss != "bradley-terry"

    def effects(self, base: Base, generator: torch.Generator) -> dict[str, Effect]:
        """The head."""
        return {f"head.{HEAD}": Head(base.hidden_size)}

    def rewards(self, customized: Customized, batch: PairBatch, hidden: torch.Tensor) -> torch.Tensor:
        """The head's output at the completions' last tokens."""
        return customized.customization.heads[HEAD](hidden[batch.last])[..., 0]

    def compute_loss(self, customized: Customized, batch: PairBatch, hidden: torch.Tensor) -> Loss:
        """The pairs' losses, summed."""
        rewards = self.rewards(customized, batch, hidden)
        chosen, rejected = rewards
        difference = chosen - rejected
        if self.loss == "scaled":
            found = losses.scaled_bradley_terry_loss(difference, batch.margins)
        else:
            found = losses.bradley_terry_loss(difference, batch.margins if self.loss == "margin" else 0.0)
        if self.centering:
            found = found + self.centering * losses.centering_loss(chosen, rejected)
        return Loss(found.sum(), self.measured(rewards, batch))
