"""Policies that a weight β holds near the reference: what PPO, RLOO and GRPO share beside their rounds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field, PrivateAttr

from tunescope.objectives.advantages import adapted_beta
from tunescope.objectives.policy import PolicyObjective
from tunescope.objectives.rollouts import Round


class DistanceObjective(PolicyObjective):
    """Learn from a reward, less a distance to the reference."""

    beta: float = Field(0.05, ge=0)
    """Weight of the distance to the reference, in reward a nat."""
    target_kl: float | None = Field(None, gt=0)
    """Adapt beta from round to round so that a sample is this far from the reference, in nats."""
    clip: float = Field(0.2, gt=0)
    """How far the probability of a sampled token may move before it earns nothing more, as a share."""
    normalize_rewards: bool = False
    """Divide rewards by their standard deviation over all rounds so far."""

    _beta: float | None = PrivateAttr(None)
    _moments: list[float] = PrivateAttr(default_factory=lambda: [0.0, 0.0, 0.0])

    @property
    def weight_of_distance(self) -> float:
        """``beta``, or what it was adapted to."""
        return self.beta if self._beta is None else self._beta

    def adapt(self, found: Round) -> None:
        """Move beta toward ``target_kl``."""
        if self.target_kl is not None:
            self._beta = adapted_beta(found.beta, max(float(found.kl.mean()), 0.0), self.target_kl)

    def scaled(self, scores: torch.Tensor) -> torch.Tensor:
        """The scores, divided by their running standard deviation where asked for."""
        super().scaled(scores)
        if not self.normalize_rewards:
            return scores
        count, total, squares = self._moments
        self._moments = [count + len(scores), total + float(scores.sum()), squares + float(scores.square().sum())]
        count, total, squares = self._moments
        spread = max(squares / count - (total / count) ** 2, 0.0) ** 0.5
        return scores / max(spread, 1e-6)

    def state(self) -> dict[str, Any]:
        """The base class's, and what was adapted."""
        return super().state() | {"beta": self._beta, "moments": self._moments}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from it."""
        super().load_state(state)
        self._beta, self._moments = state["beta"], list(state["moments"])
