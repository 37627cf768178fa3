"""Measurements of one customization: its task, what it forgot, its latency and cost."""

from tunescope.evaluation.card import Card, evaluate
from tunescope.evaluation.forgetting import Probes, default_probes, user_probes

__all__ = ["Card", "Probes", "default_probes", "evaluate", "user_probes"]
