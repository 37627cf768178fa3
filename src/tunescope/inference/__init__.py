"""Running customizations: the engine that serves any of them in one batch, generation and scoring on it."""

from tunescope.inference.engine import Engine, Generated, Request, Ticket
from tunescope.inference.generation import generate, generate_ids
from tunescope.inference.prediction import Prediction, Predictor, predict
from tunescope.inference.prediction_file import predict_file
from tunescope.inference.sampling import Sampling
from tunescope.inference.scoring import Item, Score, score

__all__ = [
    "Engine",
    "Generated",
    "Item",
    "Prediction",
    "Predictor",
    "Request",
    "Sampling",
    "Score",
    "Ticket",
    "generate",
    "generate_ids",
    "predict",
    "predict_file",
    "score",
]
