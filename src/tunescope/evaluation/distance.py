"""How far a customization moved the base on the task's own rows: what RL's Razor (Shenfeld, Pari and Agrawal 2025,
arXiv:2509.04259) finds forgetting to follow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

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
# Rows that share a pass: more make no pass faster, and the vocabulary's logits take memory.
_TOGETHER = 8


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
    pairs = [tuple(encoder.encode_all([row]) for encoder in encoders) for row in rows[:_ROWS]]
    fitting = [(own[0], its[0]) for own, its in pairs if own and its and own[0].completion == its[0].completion]
    total, tokens = 0.0, 0
    for start in range(0, len(fitting), _TOGETHER):
        own, its = zip(*fitting[start : start + _TOGETHER], strict=True)
        now, before = _log_probabilities(customized, own), _log_probabilities(base, its)
        total += float((now.exp() * (now - before)).sum())
        tokens += len(now)
    return total / tokens if tokens else None


def _log_probabilities(customized: Customized, rows: Sequence[Encoded]) -> torch.Tensor:
    """Of every token of the vocabulary in place of each token of the completions, [tokens, vocabulary] in float32."""
    completions = [replace(row, earlier=()) for row in rows]
    packed = SFT().collate(completions).to(customized.base.device).packed
    with customized.active() as base:
        logits = base.vocabulary_head(packed_hidden(base, packed)[packed.predictors])
    return logits.float().log_softmax(dim=-1)
