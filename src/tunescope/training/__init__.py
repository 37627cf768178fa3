"""The one loop: optimizer, schedule, precision, checkpoint and resume."""

from tunescope.training.learner import Learner
from tunescope.training.metrics import StepMetrics
from tunescope.training.result import TrainResult
from tunescope.training.run import Trained, train
from tunescope.training.settings import TrainSettings
from tunescope.training.tasks import train_tasks

__all__ = ["Learner", "StepMetrics", "TrainResult", "TrainSettings", "Trained", "train", "train_tasks"]
