"""The vocabulary head a few rows at a time against all logits at once."""

from __future__ import annotations

import copy

import pytest
import torch
from tests.tiny import ARCHITECTURES, tiny_base

from tunescope.base.head import ROWS

EVERYWHERE = pytest.mark.parametrize("arch", ARCHITECTURES)
TOKENS = ROWS + 44  # two chunks, the second one not full


def _ids() -> torch.Tensor:
    return torch.randint(0, 256, (2, TOKENS // 2 + 1), generator=torch.Generator().manual_seed(3))


def _weights() -> torch.Tensor:
    return torch.randn(TOKENS, generator=torch.Generator().manual_seed(4))


@EVERYWHERE
def test_equal_to_the_models_own_logits(arch: str) -> None:
    base, ids = tiny_base(arch), _ids()
    with torch.no_grad():
        expected = base.forward(ids, torch.ones_like(ids)).log_softmax(-1)[:, :-1].gather(2, ids[:, 1:, None])
        hidden = base.hidden(ids, torch.ones_like(ids))[:, :-1].flatten(0, 1)
        torch.testing.assert_close(base.logprobs(hidden, ids[:, 1:].flatten()), expected.flatten(), atol=1e-5, rtol=0)


@EVERYWHERE
@pytest.mark.parametrize("moves", [False, True])
def test_gradients_equal_those_of_all_logits(arch: str, moves: bool) -> None:
    base = tiny_base(arch).copy_to_move()
    ids, head = _ids(), base.model.get_output_embeddings()
    head.requires_grad_(moves)
    with torch.no_grad():
        hidden = base.hidden(ids, torch.ones_like(ids))[:, :-1].flatten(0, 1)
    found = []
    for whole in (False, True):
        leaf = hidden.clone().requires_grad_()
        if whole:
            logits = base.vocabulary_head(leaf).float()
            logprobs = logits.log_softmax(-1).gather(1, ids[:, 1:].flatten()[:, None])[:, 0]
        else:
            logprobs = base.logprobs(leaf, ids[:, 1:].flatten())
        (logprobs * _weights()).sum().backward()
        found.append([leaf.grad, *(copy.copy(p.grad) for p in head.parameters() if moves)])
        head.zero_grad()
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("moves", [False, True])
def test_few_rows_at_once(moves: bool) -> None:
    base, seen = tiny_base().copy_to_move(), []
    head = base.model.get_output_embeddings()
    head.requires_grad_(moves).register_forward_hook(lambda _m, _args, logits: seen.append(logits.shape[:-1].numel()))
    hidden = torch.randn(TOKENS, base.hidden_size, requires_grad=True)
    base.logprobs(hidden, torch.zeros(TOKENS, dtype=torch.long)).sum().backward()
    assert max(seen) == ROWS
    assert sum(seen) == TOKENS * (1 + moves)  # a frozen head is never computed twice
