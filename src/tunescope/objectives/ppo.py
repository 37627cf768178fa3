"""Proximal policy optimization with a critic, as RLHF has it (Schulman et al. 2017, arXiv:1707.06347; Ouyang et al.
2022, arXiv:2203.02155).

1. Each token is rewarded for staying near the reference, the last one with the sample's score (``token_rewards``).
2. The critic, a customization of its own with a value head, says what was to be expected; generalized advantage
   estimation compares (``gae``).
3. Advantages are whitened over the round.
4. The policy learns by the clipped ratio, the critic by the clipped squared error, on the same rollouts and at rates of
   their own. There is no coefficient between the two: they share no parameter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from pydantic import Field, PrivateAttr

from tunescope.base import Base
from tunescope.data.encoding import Encoder
from tunescope.data.reading import Table
from tunescope.errors import TrainingError
from tunescope.methods import Customized
from tunescope.methods.effects import Effect
from tunescope.objectives.advantages import explained_variance, gae, token_rewards, whiten
from tunescope.objectives.distance import DistanceObjective
from tunescope.objectives.forward import packed_hidden
from tunescope.objectives.heads import Head
from tunescope.objectives.objective import Loss, Objective, Services
from tunescope.objectives.policy_losses import clipped_policy_loss, clipped_value_loss
from tunescope.objectives.rollouts import Rollout, RolloutBatch, Round, by_sample, collate_rollouts, padded, unpadded

VALUE = "value"


class PPO(DistanceObjective):
    """Proximal policy optimization: a clipped step toward what did better than a critic expected."""

    name: ClassVar[str] = "ppo"

    gamma: float = Field(1.0, gt=0, le=1)
    """Discount a token; 1 counts the score in full at every token."""
    lam: float = Field(0.95, ge=0, le=1)
    """How far advantages look ahead: 1 trusts the score alone, 0 the critic."""
    whiten: bool = True
    """Give a round's advantages mean 0 and variance 1."""
    value_clip: float = Field(0.2, gt=0)
    """How far a value may move in a round before it earns nothing more."""
    critic: str | None = None
    """BANK/NAME of a reward model that the critic starts from. By default the reward, where it is one."""
    critic_rate: float = Field(10.0, gt=0)
    """The critic's learning rate, as a multiple of --lr: values must be right before advantages are."""
    critic_warmup: int = Field(1, ge=0)
    """First rounds, in which the critic alone learns."""

    _warming: bool = PrivateAttr(False)

    def collect(
        self, number: int, customized: Customized, examples: Sequence[Any], services: Services
    ) -> list[Rollout]:
        """As ever; in the first rounds the policy rests."""
        self._warming = number < self.critic_warmup
        return super().collect(number, customized, examples, services)

    @property
    def resting(self) -> bool:
        """Also while the critic is warmed up."""
        return self._warming or super().resting

    def state(self) -> dict[str, Any]:
        """The base class's, and whether the critic is warmed up."""
        return super().state() | {"warming": self._warming}

    def load_state(self, state: Any) -> None:
        """Go on from it."""
        super().load_state(state)
        self._warming = state["warming"]

    def estimate(self, found: Round, rollouts: list[Rollout], services: Services) -> list[Rollout]:
        """Advantages against the critic's values, and what the critic is to learn."""
        if services.critic is None:
            raise TrainingError("PPO needs a critic beside the policy: train it with tunescope.train.")
        values, _ = padded([each for prompt in critic_values(services.critic, rollouts) for each in prompt])
        rewards = token_rewards(found.scores, found.logprobs, found.reference, found.mask, found.beta)
        advantages, returns = gae(rewards, values, found.mask, self.gamma, self.lam)
        self._observed["explained_variance"] = explained_variance(values[found.mask], returns[found.mask])
        if self.whiten:
            advantages = whiten(advantages, found.mask)
        parts = [unpadded(each, found.mask, self.n) for each in (advantages, values, returns)]
        return [
            replace(rollout, advantages=a, values=v, returns=r)
            for rollout, a, v, r in zip(rollouts, *parts, strict=True)
        ]

    def policy_loss(self, logprobs: torch.Tensor, batch: RolloutBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """A token counts 1."""
        found, clipped = clipped_policy_loss(logprobs, batch.old, batch.advantages, self.clip)
        return found[batch.learned].sum(), clipped


class Critic(Objective):
    """Foresee what a sample will be worth, from each of its tokens on: PPO's critic."""

    name: ClassVar[str] = "critic"
    example: ClassVar[type] = Rollout
    unit: ClassVar[str] = "prompts"

    clip: float = Field(0.2, gt=0)
    """As PPO's ``value_clip``."""
    rounds: int = Field(1, gt=0)
    """As PPO's."""

    _rollouts: Callable[[], Sequence[Rollout]] = PrivateAttr(list)

    def follow(self, rollouts: Callable[[], Sequence[Rollout]]) -> None:
        """Learn from these: called at the start of each of the policy's rounds."""
        self._rollouts = rollouts

    @property
    def number_of_rounds(self) -> int:
        """As many as the policy's."""
        return self.rounds

    def effects(self, base: Base, generator: torch.Generator, rows: Sequence[Any] = ()) -> dict[str, Effect]:
        """The value head."""
        return {f"head.{VALUE}": Head(base.hidden_size, bias=True)}

    def rows(self, table: Table, pattern: str | None, skip_bad: int, on_note: Any = None) -> list[Any]:
        """None: it learns from the policy's rollouts."""
        return []

    def examples(self, rows: Sequence[Any], encoder: Encoder) -> list[Any]:
        """None."""
        return []

    def collect(
        self, number: int, customized: Customized, examples: Sequence[Any], services: Services
    ) -> list[Rollout]:
        """The policy's rollouts of this round."""
        return _with_own_prompts(customized, self._rollouts())

    def collate(self, examples: Sequence[Rollout]) -> RolloutBatch:
        """Rollouts packed, one a group."""
        return collate_rollouts(examples)

    def weight(self, batch: RolloutBatch) -> int:
        """Tokens."""
        return len(batch.returns)

    def compute_loss(self, customized: Customized, batch: RolloutBatch, hidden: torch.Tensor) -> Loss:
        """The squared errors, summed over tokens."""
        found, clipped = clipped_value_loss(_values(customized, batch, hidden), batch.values, batch.returns, self.clip)
        return Loss(found.sum(), {"clip_share": clipped.sum()})


@torch.no_grad()
def critic_values(critic: Customized, rollouts: Sequence[Rollout]) -> list[list[list[float]]]:
    """What the critic expects before each token of the samples, by prompt and sample."""
    with critic.active() as base:
        own = _with_own_prompts(critic, rollouts)
        return by_sample(own, lambda batch: _values(critic, batch, packed_hidden(base, batch.packed)), base)


def _with_own_prompts(critic: Customized, rollouts: Sequence[Rollout]) -> list[Rollout]:
    """The rollouts with the critic's own virtual tokens in place of the policy's."""
    own = critic.template.virtual_ids
    return [replace(each, prompt=[*own, *(token for token in each.prompt if token >= 0)]) for each in rollouts]


def _values(critic: Customized, batch: RolloutBatch, hidden: torch.Tensor) -> torch.Tensor:
    """[targets] what the critic reads where each token is predicted, before it is there."""
    return critic.customization.heads[VALUE](hidden[batch.packed.predictors])[..., 0]
