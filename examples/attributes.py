"""Attributes of English prose that are measured exactly, each from 0 to 4, for examples/steerlm.yaml.

The bands are such that each holds about a fifth of the passages of grimm-passages, or of the sentences of reviews.
"""

import re
from bisect import bisect_right

from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

_sentiment = SentimentIntensityAnalyzer()


def verbosity(prompt: str, completion: str) -> int:
    """How long it is: by words."""
    return bisect_right((16, 32, 50, 75), len(completion.split()))


def sentence_verbosity(prompt: str, completion: str) -> int:
    """How long a sentence is: by words."""
    return bisect_right((11, 16, 21, 27), len(completion.split()))


def mood(prompt: str, completion: str) -> int:
    """How positive it sounds: by VADER's compound score, from -1 to 1."""
    return bisect_right((-0.4, -1e-9, 0.2, 0.65), _sentiment.polarity_scores(completion)["compound"])


def complexity(prompt: str, completion: str) -> int:
    """How hard its words are: by the share of words of six letters and more."""
    words = re.findall(r"[A-Za-z]+", completion)
    return bisect_right((0.12, 0.15, 0.18, 0.22), sum(len(word) >= 6 for word in words) / max(len(words), 1))
