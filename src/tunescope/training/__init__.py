"""The one loop: optimizer, schedule, precision, checkpoint and resume."""

from tunescope.training.loop import TrainResult
from tunescope.training.metrics import StepMetrics
from tunescope.training.run import Trained, train
from tunescope.training.settings import TrainSettings

__all__ = ["StepMetrics", "TrainResult", "TrainSettings", "Trained", "train"]
