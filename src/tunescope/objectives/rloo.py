"""REINFORCE leave-one-out: the other samples of a prompt say what was to be expected (Ahmadian et al. 2024,
arXiv:2402.14740).

No critic is trained. A whole sample is one action. Its reward holds the distance to the reference,

    R = score - β (log π(y) - log π_ref(y)),

its advantage A is R less the mean of the prompt's others, and its probability ratio is clipped as PPO's. At the first
step of a round, where the ratio is 1, the gradient is REINFORCE's: -A ∇ log π(y).
"""

from __future__ import annotations

from typing import ClassVar

import torch

from tunescope.objectives.advantages import leave_one_out
from tunescope.objectives.distance import DistanceObjective
from tunescope.objectives.objective import Services
from tunescope.objectives.policy_losses import clipped_policy_loss
from tunescope.objectives.rollouts import Rollout, RolloutBatch, Round, with_sample_advantages


class RLOO(DistanceObjective):
    """REINFORCE with the mean of a prompt's other samples as the baseline."""

    name: ClassVar[str] = "rloo"
    needs_several: ClassVar[bool] = True

    def estimate(self, found: Round, rollouts: list[Rollout], services: Services) -> list[Rollout]:
        """Each sample against the others of its prompt."""
        rewards = found.scores - found.beta * found.kl
        return with_sample_advantages(rollouts, leave_one_out(rewards.view(-1, self.n)))

    def weight(self, batch: RolloutBatch) -> int:
        """Samples."""
        return batch.samples

    def policy_loss(self, logprobs: torch.Tensor, batch: RolloutBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """A sample counts 1, whatever its length."""
        lengths = batch.packed.lengths
        first = lengths.cumsum(0) - lengths
        new, old = batch.sample_sums(logprobs), batch.sample_sums(batch.old)
        found, clipped = clipped_policy_loss(new, old, batch.advantages[first], self.clip)
        return found[batch.learned[first]].sum(), clipped.repeat_interleave(lengths)
