"""Contextual calibration: how likely each label is behind texts that say nothing.

A base has favorites among the labels, whatever the text. Zhao et al. (2021, arXiv:2102.09690) ask it about content-free
texts, take the mean p of the labels' probabilities over them, and divide every later answer's probabilities by p
(section 5: W = diag(p)⁻¹, b = 0). The logarithm of p is kept with the template, so that what was measured is served.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from tunescope.data.encoding import Encoder
from tunescope.data.messages import Message
from tunescope.data.patterns import Pattern
from tunescope.inference.prediction import probabilities_of, prompt_of_columns
from tunescope.inference.scoring import Item, score
from tunescope.methods import Customized

CONTENT_FREE = ("N/A", "[MASK]", "?")
"""Texts that say nothing about their label. The paper's third is the empty one, which a row cannot hold."""


def label_prior(customized: Customized, labels: Sequence[str], max_length: int | None = None) -> dict[str, float]:
    """The logarithm of each label's mean probability, in nats, over ``CONTENT_FREE``.

    Args:
        customized: asked through its own template, calibrated or not.
        labels: all of the task's.
        max_length: most tokens of a row, as it will be asked.

    Returns:
        By label; nothing where the base's numbers are not finite.
    """
    base, template = customized.base, customized.template
    encoder = Encoder(base.tokenizer, template, base.context_length, max_length)
    asked = [_row(text, template.pattern) for text in CONTENT_FREE]
    items = [Item(*encoder.candidates(messages, labels, ())) for messages in asked]
    shares = [
        probabilities_of(dict(zip(labels, (each.logprob for each in scores), strict=True)))
        for scores in score(customized, items)
    ]
    if not all(shares):
        return {}
    means = {label: sum(found[label] for found in shares if found) / len(shares) for label in labels}
    return {label: round(math.log(max(mean, 1e-30)), 6) for label, mean in means.items()}


def _row(text: str, pattern: str | None) -> tuple[Message, ...]:
    """The prompt of a row whose every input column holds the text."""
    if pattern is None:
        return prompt_of_columns({"prompt": text}, None)
    return prompt_of_columns(dict.fromkeys(Pattern.parse(pattern).fields, text), pattern)
