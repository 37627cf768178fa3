"""WHAT it is trained for: one file an objective; losses are pure functions, tensors in and out."""

from tunescope.objectives.objective import Objective
from tunescope.objectives.sft import SFT

__all__ = ["SFT", "Objective"]
