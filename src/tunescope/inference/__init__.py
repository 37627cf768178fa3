"""Running customizations: the engine that serves any of them in one batch, generation and scoring on it."""

from tunescope.inference.engine import Engine
from tunescope.inference.generation import generate, generate_ids
from tunescope.inference.prediction import Prediction, Predictor, predict
from tunescope.inference.prediction_file import predict_file
from tunescope.inference.requests import Generated, Request, ScoreRequest, Ticket
from tunescope.inference.rewards import reward_scores
from tunescope.inference.sampling import Sampling
from tunescope.inference.scoring import Item, Score, head_scores, score

__all__ = [
    "Engine",
    "Generated",
    "Item",
    "Prediction",
    "Predictor",
    "Request",
    "Sampling",
    "Score",
    "ScoreRequest",
    "Ticket",
    "generate",
    "generate_ids",
    "head_scores",
    "predict",
    "predict_file",
    "reward_scores",
    "score",
]
