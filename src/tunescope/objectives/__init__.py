"""WHAT it is trained for: one file an objective; losses are pure functions, tensors in and out."""

from tunescope.objectives.dpo import DPO
from tunescope.objectives.heads import Head
from tunescope.objectives.objective import Loss, Objective, Sampled, Sampler
from tunescope.objectives.preference import PreferenceObjective
from tunescope.objectives.reward_model import Reward
from tunescope.objectives.sft import SFT

__all__ = ["DPO", "SFT", "Head", "Loss", "Objective", "PreferenceObjective", "Reward", "Sampled", "Sampler"]
