"""How far a customization moved the base on its task: against a full forward pass a row, and zero where it must be."""

from __future__ import annotations

import pytest
import torch
from tests.tiny import tiny_base

import tunescope as ts
from tunescope.data.encoding import Encoder
from tunescope.data.inputs import understand
from tunescope.evaluation.distance import task_divergence
from tunescope.methods import FewShot, Full, LoRA, Method, PromptTuning, ZeroShot

DATA = [{"prompt": f"the {('sun', 'rain')[i % 2]} of {i}", "completion": ("warm", "wet")[i % 2]} for i in range(20)]
ROWS = understand(DATA, None).rows


def customized(method: Method) -> ts.Customized:
    settings = ts.TrainSettings(max_steps=4, lr=1e-2, batch_size=4)
    return ts.train(tiny_base(), method, data=DATA, settings=settings).customized


def logits(base: ts.Base, template: object, row: object) -> torch.Tensor:
    """Of every token of the completion, from all logits of the whole text."""
    encoded = Encoder(base.tokenizer, template, base.context_length).encode(row)
    ids = torch.tensor([encoded.prompt + encoded.completion])
    with torch.no_grad():
        found = base.model(input_ids=ids).logits[0]
    return found[len(encoded.prompt) - 1 : -1].float()


@pytest.mark.parametrize("method", [FewShot(shots=2), Full()], ids=lambda m: m.name)
def test_it_is_the_mean_divergence_of_the_next_token(method: Method) -> None:
    """By the slow obvious version, for what a plain model can compute: another prompt, and another model."""
    ours, base = customized(method), tiny_base()
    plain = customized(ZeroShot()).template
    total, tokens = 0.0, 0
    for row in ROWS:
        now = logits(ours.base, ours.template, row).log_softmax(-1)
        before = logits(base, plain, row).log_softmax(-1)
        total += float((now.exp() * (now - before)).sum())
        tokens += len(now)
    assert task_divergence(ours, ROWS) == pytest.approx(total / tokens, rel=1e-4)


@pytest.mark.parametrize("method", [LoRA(rank=2), PromptTuning(virtual_tokens=3)], ids=lambda m: m.name)
def test_effects_move_it_and_the_base_as_it_is_does_not(method: Method) -> None:
    found = task_divergence(customized(method), ROWS)
    assert found is not None and found > 1e-4
    assert task_divergence(customized(ZeroShot()), ROWS) == pytest.approx(0.0, abs=1e-7)
