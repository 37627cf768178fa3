"""Losses of policy optimization, a value a token; all in float32. Ratios are π / π_old, with π_old what sampled."""

from __future__ import annotations

import torch


def clipped_policy_loss(
    logprobs: torch.Tensor, old: torch.Tensor, advantages: torch.Tensor, clip: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """PPO's clipped surrogate, negated (Schulman et al. 2017, arXiv:1707.06347, equation 7).

        -min(ratio · A, clip(ratio, 1 - ε, 1 + ε) · A)

    Args:
        logprobs: [values], under the policy that is trained.
        old: [values], under the policy that sampled.
        advantages: [values].
        clip: ε.

    Returns:
        the loss of each value, and where it was clipped (True: no gradient).
    """
    ratio = torch.exp(logprobs - old)
    free, bounded = -advantages * ratio, -advantages * ratio.clamp(1 - clip, 1 + clip)
    return torch.maximum(free, bounded), bounded > free


def clipped_value_loss(
    values: torch.Tensor, old: torch.Tensor, returns: torch.Tensor, clip: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The critic's squared error, in which moving further than ``clip`` from its old value earns nothing.

        1/2 max((V - R)², (clip(V, V_old - ε, V_old + ε) - R)²)

    (The clipping is of OpenAI's baselines, not of the paper.) Arguments and results as for the policy's loss.
    """
    free = (values - returns).square()
    bounded = (old + (values - old).clamp(-clip, clip) - returns).square()
    return 0.5 * torch.maximum(free, bounded), bounded > free


def kl_estimate(logprobs: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """An estimate of KL(π ‖ π_ref) at tokens that π sampled: never negative, and unbiased at π (Schulman 2020, "k3").

    exp(log π_ref - log π) - (log π_ref - log π) - 1
    """
    difference = reference - logprobs
    return torch.exp(difference) - difference - 1


def target_weight_loss(weights: torch.Tensor, moved: torch.Tensor, learned: torch.Tensor) -> torch.Tensor:
    """KL(w ‖ b) over the samples of each prompt, with b ∝ exp(moved): SteerLM 2's (Wang et al. 2024, arXiv:2406.08673).

    Its gradient is -Σ (w_i - b_i) ∇ moved_i (equation 6 there).

    Args:
        weights: [prompts, n] w, each prompt's sum to 1; 0 where nothing is learned.
        moved: [prompts, n] log-probability of each sample less that under the policy that sampled, in nats.
        learned: [prompts, n] which samples count; of a prompt without any the loss is 0.

    Returns:
        [prompts], in nats.
    """
    counted = learned | ~learned.any(dim=1, keepdim=True)
    share = moved.masked_fill(~counted, -torch.inf).log_softmax(dim=1)
    return torch.where(weights > 0, weights * (weights.clamp(min=1e-30).log() - share), 0.0).sum(dim=1)
