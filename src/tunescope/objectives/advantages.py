"""From rewards to advantages: how much better each token or each completion was than expected.

Tensors of samples are padded on the right: [samples, tokens], with a mask of the same shape that is True at tokens.
Everything is float32.
"""

from __future__ import annotations

import torch

# Keeps a division by a spread of zero finite.
_EPSILON = 1e-8
_GROUP_EPSILON = 1e-4


def token_rewards(
    scores: torch.Tensor, logprobs: torch.Tensor, reference: torch.Tensor, mask: torch.Tensor, beta: float
) -> torch.Tensor:
    """The reward of each token: its share of the distance to the reference, and at the last one the score.

        r_t = -β (log π(y_t) - log π_ref(y_t)) + [t is the last] · score

    (Ziegler et al. 2019, arXiv:1909.08593, section 2.1; Ouyang et al. 2022, arXiv:2203.02155, equation 2.)

    Args:
        scores: [samples].
        logprobs: [samples, tokens] under the policy that sampled.
        reference: [samples, tokens] under the reference.
        mask: [samples, tokens].
        beta: weight of the distance.

    Returns:
        [samples, tokens], zero where the mask is False.
    """
    rewards = torch.where(mask, -beta * (logprobs - reference), 0.0)
    last = mask.sum(dim=1) - 1
    rewards[torch.arange(len(rewards)), last] += scores
    return rewards


def gae(
    rewards: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, gamma: float, lam: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Generalized advantage estimation (Schulman et al. 2016, arXiv:1506.02438).

    1. δ_t = r_t + γ V_{t+1} - V_t, with V = 0 behind the last token (equation 9)
    2. A_t = δ_t + γ λ A_{t+1} (equation 16)
    3. R_t = A_t + V_t, what the critic learns

    Args:
        rewards: [samples, tokens].
        values: [samples, tokens], the critic's when the samples were made.
        mask: [samples, tokens].
        gamma: discount; 1 counts a later reward in full.
        lam: λ; 1 trusts the rewards alone, 0 the critic.

    Returns:
        advantages and returns, both [samples, tokens], zero where the mask is False.
    """
    values = values.masked_fill(~mask, 0.0)
    advantages = torch.zeros_like(rewards)
    carried = torch.zeros(len(rewards))
    for t in range(rewards.shape[1] - 1, -1, -1):
        following = values[:, t + 1] if t + 1 < rewards.shape[1] else torch.zeros(len(rewards))
        delta = rewards[:, t] + gamma * following - values[:, t]
        carried = torch.where(mask[:, t], delta + gamma * lam * carried, 0.0)
        advantages[:, t] = carried
    return advantages, (advantages + values).masked_fill(~mask, 0.0)


def whiten(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Values with mean 0 and variance 1 over the mask; zero elsewhere. One value alone becomes 0."""
    chosen = values[mask]
    spread = chosen.var() if len(chosen) > 1 else torch.tensor(0.0)
    return ((values - chosen.mean()) * torch.rsqrt(spread + _EPSILON)).masked_fill(~mask, 0.0)


def leave_one_out(rewards: torch.Tensor) -> torch.Tensor:
    """RLOO: each sample against the mean of its prompt's others (Ahmadian et al. 2024, arXiv:2402.14740, section 3.2).

        A_i = R_i - 1/(n-1) Σ_{j≠i} R_j

    Args:
        rewards: [prompts, n], n at least 2.
    """
    n = rewards.shape[1]
    return rewards - (rewards.sum(dim=1, keepdim=True) - rewards) / (n - 1)


def group_relative(rewards: torch.Tensor, *, divide: bool) -> torch.Tensor:
    """GRPO: each sample against the mean of its prompt's samples (Shao et al. 2024, arXiv:2402.03300, section 4.1.2).

        A_i = (R_i - mean R) / std R

    Without the division, as in Dr. GRPO (Liu et al. 2025, arXiv:2503.20783), prompts on which all samples do about
    equally well do not count more.

    Args:
        rewards: [prompts, n], n at least 2.
        divide: by the group's standard deviation.
    """
    centered = rewards - rewards.mean(dim=1, keepdim=True)
    return centered / (rewards.std(dim=1, keepdim=True) + _GROUP_EPSILON) if divide else centered


def explained_variance(values: torch.Tensor, returns: torch.Tensor) -> float:
    """Which share of the returns' variance the critic foresaw: 1 - Var(R - V) / Var(R). 0 or less: none.

    Args:
        values: [tokens].
        returns: [tokens].
    """
    spread = returns.var(correction=0)
    return 0.0 if spread < _EPSILON else float(1 - (returns - values).var(correction=0) / spread)


def adapted_beta(beta: float, kl: float, target: float) -> float:
    """β for the next round: larger where the policy moved further than the target (Ziegler et al. 2019, equation 3).

        β' = β (1 + clip((KL - target) / target, -0.2, 0.2))

    The paper's gain is 0.1 a batch, for many more batches than a run has rounds here; this one is 1.
    """
    return beta * (1 + min(max((kl - target) / target, -0.2), 0.2))
