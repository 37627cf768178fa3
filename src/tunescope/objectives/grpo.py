"""Group relative policy optimization (Shao et al. 2024, arXiv:2402.03300), and its unbiased form Dr. GRPO (Liu et al.
2025, arXiv:2503.20783).

The mean of a prompt's samples says what was to be expected, and every token of a sample has the sample's advantage. The
distance to the reference is a term of the loss at each token (``kl_estimate``), not of the reward. On samples of the
policy its gradient is that of KL(π_ref ‖ π), where PPO and RLOO hold KL(π ‖ π_ref) down: equal β are unlike. (TRL's
``use_bias_correction_kl``, its default, multiplies the term by the ratio, which turns its gradient into the latter.)

GRPO divides a group's advantages by their standard deviation and a sample's loss by its length. The first lets prompts
on which all samples do about equally well count more, the second lets a bad sample off more lightly the longer it is.
Dr. GRPO leaves both out.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch

from tunescope.objectives.advantages import group_relative
from tunescope.objectives.distance import DistanceObjective
from tunescope.objectives.objective import Services
from tunescope.objectives.policy_losses import clipped_policy_loss, kl_estimate
from tunescope.objectives.rollouts import Rollout, RolloutBatch, Round, with_sample_advantages


class GRPO(DistanceObjective):
    """Group relative policy optimization: samples against the mean of their prompt's."""

    name: ClassVar[str] = "grpo"
    needs_several: ClassVar[bool] = True

    divide: Literal["std", "nothing"] = "std"
    """What a prompt's advantages are divided by: their standard deviation, or nothing (Dr. GRPO)."""
    normalize: Literal["sample", "longest"] = "sample"
    """What a sample's loss is divided by: its own length, or max-new-tokens for all alike (Dr. GRPO)."""

    def estimate(self, found: Round, rollouts: list[Rollout], services: Services) -> list[Rollout]:
        """Each sample against the mean of its prompt's."""
        rewards = found.scores.view(-1, self.n)
        return with_sample_advantages(rollouts, group_relative(rewards, divide=self.divide == "std"))

    def weight(self, batch: RolloutBatch) -> int:
        """Samples."""
        return batch.samples

    def policy_loss(self, logprobs: torch.Tensor, batch: RolloutBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """A sample counts 1, its tokens alike."""
        found, clipped = clipped_policy_loss(logprobs, batch.old, batch.advantages, self.clip)
        beta = self.beta if self._beta is None else self._beta
        if beta:
            found = found + beta * kl_estimate(logprobs, batch.reference)
        lengths = batch.packed.lengths
        divisors = lengths if self.normalize == "sample" else torch.full_like(lengths, self.max_new_tokens)
        return (found / divisors.repeat_interleave(lengths))[batch.learned].sum(), clipped
