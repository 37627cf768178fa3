"""How far planned seconds are from real ones here: a few steps of one run, taken and timed."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from tunescope.base import Base
from tunescope.methods import Method, customize
from tunescope.objectives import Objective
from tunescope.planning.run import Setting
from tunescope.planning.texts import Texts, examples_for
from tunescope.training import Learner
from tunescope.training.loop import train_loop

# The first step prepares what later ones use again; it is not counted.
_STEPS = 4


def calibrate(base: Base, setting: Setting, method: Method, objective: Objective, texts: Texts) -> float:
    """Measured seconds a step over planned ones.

    Args:
        base: with its weights, on the machine that was planned for.
        setting: of the plan.
        method: that trains something.
        objective: that learns from rows or comparisons as they are.
        texts: of the plan; the first steps' are learned from, and nothing is kept.
    """
    training = setting.training.model_copy(update={"max_steps": _STEPS})
    customized = customize(base, method, setting.template, seed=0, added=objective.effects(base, torch.Generator()))
    some = texts.all[: training.batch_size * _STEPS]
    examples = examples_for(objective, some, customized.template.virtual_ids)
    seconds: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        learner = Learner(customized, objective, examples, training, Path(folder))
        train_loop([learner], on_step=lambda _, metrics: seconds.append(metrics.seconds))
    planned = setting.run(method, objective, some)
    return (seconds[-1] - seconds[0]) / (planned.seconds * (_STEPS - 1) / planned.steps)
