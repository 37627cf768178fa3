"""Will it fit, how long will it take: estimates before a run, from the run's own code without its weights."""

from tunescope.planning.machines import GPUS, Machine, gpu, this_machine
from tunescope.planning.planner import Plan, Planner, PlanSettings, Row, plan
from tunescope.planning.run import Parts
from tunescope.planning.texts import Texts

__all__ = [
    "GPUS",
    "Machine",
    "Parts",
    "Plan",
    "PlanSettings",
    "Planner",
    "Row",
    "Texts",
    "gpu",
    "plan",
    "this_machine",
]
