"""Advantages and losses of policy optimization against hand-computed cases and slow versions of the same formulas."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tunescope.objectives.advantages import (
    adapted_beta,
    explained_variance,
    gae,
    group_relative,
    leave_one_out,
    token_rewards,
    whiten,
)
from tunescope.objectives.policy_losses import clipped_policy_loss, clipped_value_loss, kl_estimate


def test_token_rewards_by_hand() -> None:
    mask = torch.tensor([[True, True, True], [True, False, False]])
    logprobs = torch.tensor([[-1.0, -2.0, -3.0], [-0.5, 9.0, 9.0]])
    reference = torch.tensor([[-1.5, -2.0, -1.0], [-1.5, 7.0, 7.0]])
    found = token_rewards(torch.tensor([2.0, -1.0]), logprobs, reference, mask, 0.1)
    assert torch.allclose(found, torch.tensor([[-0.05, 0.0, 2.2], [-1.1, 0.0, 0.0]]))


def test_gae_by_hand() -> None:
    """γ = 0.5, λ = 0.5: δ = (0 + 0.5·2 - 1, 0 + 0.5·3 - 2, 4 - 3) = (0, -0.5, 1)."""
    rewards, values = torch.tensor([[0.0, 0.0, 4.0]]), torch.tensor([[1.0, 2.0, 3.0]])
    advantages, returns = gae(rewards, values, torch.ones(1, 3, dtype=torch.bool), 0.5, 0.5)
    assert torch.allclose(advantages, torch.tensor([[0.25 * (-0.5 + 0.25), -0.5 + 0.25, 1.0]]))
    assert torch.allclose(returns, advantages + values)


@given(st.integers(1, 4), st.lists(st.integers(1, 6), min_size=1, max_size=4), st.floats(0, 1), st.floats(0.1, 1))
def test_gae_is_the_sum_of_discounted_errors(seed: int, lengths: list[int], lam: float, gamma: float) -> None:
    """A_t = Σ_k (γλ)^k δ_{t+k}, one sample and token at a time, whatever lies in the padding."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    rewards, values = (torch.randn(mask.shape, generator=generator) for _ in range(2))
    rewards = rewards * mask
    advantages, returns = gae(rewards, values, mask, gamma, lam)
    for i, length in enumerate(lengths):
        v = [*values[i, :length].double().tolist(), 0.0]
        delta = [rewards[i, t].item() + gamma * v[t + 1] - v[t] for t in range(length)]
        for t in range(length):
            slow = sum((gamma * lam) ** k * delta[t + k] for k in range(length - t))
            assert advantages[i, t].item() == pytest.approx(slow, abs=1e-5)
            assert returns[i, t].item() == pytest.approx(slow + v[t], abs=1e-5)
        assert not advantages[i, length:].any() and not returns[i, length:].any()


def test_with_lambda_one_advantages_are_returns_less_values() -> None:
    rewards, values = torch.tensor([[1.0, 2.0, 4.0]]), torch.tensor([[0.3, 0.2, 0.1]])
    advantages, returns = gae(rewards, values, torch.ones(1, 3, dtype=torch.bool), 1.0, 1.0)
    assert torch.allclose(returns, torch.tensor([[7.0, 6.0, 4.0]])) and torch.allclose(advantages, returns - values)


def test_whitening_sees_the_mask_alone() -> None:
    mask = torch.tensor([[True, True], [True, False]])
    found = whiten(torch.tensor([[1.0, 2.0], [3.0, 1e9]]), mask)
    assert torch.allclose(found, torch.tensor([[-1.0, 0.0], [1.0, 0.0]]))
    assert whiten(torch.tensor([[5.0]]), torch.tensor([[True]])).item() == 0


def test_groups_by_hand() -> None:
    rewards = torch.tensor([[1.0, 2.0, 6.0], [4.0, 4.0, 4.0]])
    assert torch.allclose(leave_one_out(rewards), torch.tensor([[-3.0, -1.5, 4.5], [0.0, 0.0, 0.0]]))
    assert torch.allclose(group_relative(rewards, divide=False), torch.tensor([[-2.0, -1.0, 3.0], [0.0, 0.0, 0.0]]))
    spread = math.sqrt((4 + 1 + 9) / 2) + 1e-4
    divided = group_relative(rewards, divide=True)
    assert torch.allclose(divided[0], torch.tensor([-2.0, -1.0, 3.0]) / spread) and not divided[1].any()


def test_clipped_losses_by_hand() -> None:
    """Ratios 1, 1.5 and 0.5 with ε = 0.2, for what did better and for what did worse."""
    old = torch.zeros(6)
    logprobs = torch.tensor([1.0, 1.5, 0.5, 1.0, 1.5, 0.5]).log().requires_grad_()
    advantages = torch.tensor([2.0, 2.0, 2.0, -2.0, -2.0, -2.0])
    found, clipped = clipped_policy_loss(logprobs, old, advantages, 0.2)
    assert torch.allclose(found, torch.tensor([-2.0, -2.4, -1.0, 2.0, 3.0, 1.6]))
    assert clipped.tolist() == [False, True, False, False, False, True]
    found.sum().backward()
    assert logprobs.grad is not None
    assert torch.allclose(logprobs.grad, torch.tensor([-2.0, 0.0, -1.0, 2.0, 3.0, 0.0]))


def test_the_critic_s_loss_by_hand() -> None:
    values = torch.tensor([1.5, 1.5, 1.0], requires_grad=True)
    found, clipped = clipped_value_loss(values, torch.ones(3), torch.tensor([2.0, 0.0, 3.0]), 0.2)
    assert torch.allclose(found, 0.5 * torch.tensor([0.8**2, 1.5**2, 2.0**2]))
    assert clipped.tolist() == [True, False, False]
    found.sum().backward()
    assert values.grad is not None and torch.allclose(values.grad, torch.tensor([0.0, 1.5, -2.0]))


def test_the_distance_is_never_negative_and_right_on_average() -> None:
    generator = torch.Generator().manual_seed(0)
    policy, reference = (torch.randn(12, generator=generator).log_softmax(0) for _ in range(2))
    found = kl_estimate(policy, reference)
    assert (found >= 0).all()
    exact = (policy.exp() * (policy - reference)).sum()
    assert (policy.exp() * found).sum().item() == pytest.approx(exact.item(), rel=1e-5)


def test_as_a_loss_on_samples_the_distance_pulls_by_the_forward_divergence() -> None:
    """E_π[∇ k3] = ∇ KL(π_ref ‖ π), summed over all tokens: what GRPO's term minimizes."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(12, generator=generator).requires_grad_()
    reference = torch.randn(12, generator=generator).log_softmax(0)
    policy = logits.log_softmax(0)
    (on_samples,) = torch.autograd.grad((policy.exp().detach() * kl_estimate(policy, reference)).sum(), logits)
    policy = logits.log_softmax(0)
    (forward,) = torch.autograd.grad((reference.exp() * (reference - policy)).sum(), logits)
    assert torch.allclose(on_samples, forward, atol=1e-6)


def test_explained_variance_and_beta() -> None:
    returns = torch.tensor([1.0, 2.0, 3.0])
    assert explained_variance(returns, returns) == 1 and explained_variance(torch.zeros(3), returns) == 0
    assert explained_variance(torch.ones(3), torch.ones(3)) == 0
    assert adapted_beta(0.1, 12.0, 10.0) == pytest.approx(0.12) == adapted_beta(0.1, 99.0, 10.0)
    assert adapted_beta(0.1, 9.0, 10.0) == pytest.approx(0.09)
