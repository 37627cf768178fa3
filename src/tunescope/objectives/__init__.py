"""WHAT it is trained for: one file an objective; losses are pure functions, tensors in and out."""

from tunescope.objectives.attributes import Attributes
from tunescope.objectives.dpo import DPO
from tunescope.objectives.grpo import GRPO
from tunescope.objectives.heads import Head
from tunescope.objectives.objective import Loss, Objective, Sampled, Sampler, Services
from tunescope.objectives.policy import PolicyObjective
from tunescope.objectives.ppo import PPO, Critic
from tunescope.objectives.preference import PreferenceObjective
from tunescope.objectives.reward_model import Reward
from tunescope.objectives.rloo import RLOO
from tunescope.objectives.rollouts import Rollout
from tunescope.objectives.sft import SFT
from tunescope.objectives.steerlm2 import SteerLM2

__all__ = [
    "DPO",
    "GRPO",
    "PPO",
    "RLOO",
    "SFT",
    "Attributes",
    "Critic",
    "Head",
    "Loss",
    "Objective",
    "PolicyObjective",
    "PreferenceObjective",
    "Reward",
    "Rollout",
    "Sampled",
    "Sampler",
    "Services",
    "SteerLM2",
]
