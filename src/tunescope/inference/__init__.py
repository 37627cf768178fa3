"""Running customizations: scoring given texts and generating new ones."""

from tunescope.inference.generation import Generated, Sampling, generate, generate_ids
from tunescope.inference.scoring import Item, Score, score

__all__ = ["Generated", "Item", "Sampling", "Score", "generate", "generate_ids", "score"]
