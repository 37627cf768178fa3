"""Measurements of one customization: its task, what it forgot, its latency and cost."""

from tunescope.evaluation.attribute_accuracy import evaluate_attributes
from tunescope.evaluation.card import PER_ROW, Card, evaluate
from tunescope.evaluation.forgetting import Probes, default_probes, user_probes
from tunescope.evaluation.judged import evaluate_judged
from tunescope.evaluation.preference_accuracy import evaluate_preferences
from tunescope.evaluation.steering import evaluate_steering
from tunescope.evaluation.unseen import evaluate_unseen

__all__ = [
    "PER_ROW",
    "Card",
    "Probes",
    "default_probes",
    "evaluate",
    "evaluate_attributes",
    "evaluate_judged",
    "evaluate_preferences",
    "evaluate_steering",
    "evaluate_unseen",
    "user_probes",
]
