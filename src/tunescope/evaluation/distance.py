"""How far a customization moved the base on the task's own rows: what RL's Razor (Shenfeld, Pari and Agrawal 2025,
arXiv:2509.04259) finds forgetting to follow.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tunescope.data.encoding import Encoded, Encoder
from tunescope.data.rows import Row
from tunescope.data.template import default_template
from tunescope.evaluation.forgetting import untouched
from tunescope.methods import Customized
from tunescope.objectives import SFT
from tunescope.objectives.forward import packed_hidden

_ROWS = 32
"""Rows that it is the mean over: the sum of a vocabulary's terms varies little from row to row."""


@torch.no_grad()
def task_divergence(customized: Customized, rows: Sequence[Row], max_length: int | None = None) -> float | None:
    """KL(customized ‖ base) of the next token, in nats, as a mean over the tokens of the true completions.

    Exact over the vocabulary. Each is asked through its own template: the base without the system text, the shots and
    the virtual tokens that the customization has.

    Args:
        customized: what to measure.
        rows: with completions; the first 32 that fit are taken.
        max_length: most tokens of a row.

    Returns:
        None where no row has the same completion's tokens under both templates.
    """
    origin, template = customized.origin, customized.template
    plain = default_template(origin.tokenizer, pattern=template.pattern, style=template.style)
    base = untouched(origin)
    encoders = [
        Encoder(origin.tokenizer, each, origin.context_length, max_length)
        for each in (template, plain.model_copy(update={"heal": template.heal}))
    ]
    total, tokens = 0.0, 0
    for row in rows[:_ROWS]:
        own, its = (encoder.encode_all([row]) for encoder in encoders)
        if not own or not its or own[0].completion != its[0].completion:
            continue
        now, before = _log_probabilities(customized, own[0]), _log_probabilities(base, its[0])
        total += float((now.exp() * (now - before)).sum())
        tokens += len(now)
    return total / tokens if tokens else None


def _log_probabilities(customized: Customized, encoded: Encoded) -> torch.Tensor:
    """Of every token of the vocabulary in place of each token of the completion, [tokens, vocabulary] in float32."""
    packed = SFT().collate([encoded]).to(customized.base.device).packed
    with customized.active() as base:
        hidden = packed_hidden(base, packed)[packed.predictors]
        logits = base.vocabulary_head(hidden[-len(encoded.completion) :])
    return logits.float().log_softmax(dim=-1)
