"""The vocabulary head a few rows at a time against all logits at once."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tiny import ARCHITECTURES, WHOLE, tiny_base

from tunescope.base.vocabulary_head import ROWS, logprobs_at

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


@pytest.mark.parametrize("arch", WHOLE)
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


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 40),
    scale=st.floats(0.1, 30),
    moves=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 2**16),
)
def test_logprobs_and_entropy_are_those_of_a_plain_log_softmax(
    rows: int, scale: float, moves: bool, dtype: torch.dtype, seed: int
) -> None:
    base = tiny_base("llama", dtype=dtype).copy_to_move()
    head, generator = base.model.get_output_embeddings(), torch.Generator().manual_seed(seed)
    head.requires_grad_(moves)
    hidden = (scale * torch.randn(rows, base.hidden_size, generator=generator)).to(dtype)
    targets = torch.randint(0, 256, (rows,), generator=generator)
    weights = torch.randn(2, rows, generator=generator)
    found = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tunescope.base.vocabulary_head.ROWS", 16)
        for plain in (False, True):
            leaf = hidden.clone().requires_grad_()
            if plain:
                logs = base.vocabulary_head(leaf).float().log_softmax(-1)
                values = logs.gather(1, targets[:, None])[:, 0], -(logs.exp() * logs).sum(-1)
            else:
                values = base.logprobs_and_entropy(leaf, targets)
                with torch.no_grad():
                    for ours, same in zip(base.logprobs_and_entropy(hidden, targets), values, strict=True):
                        torch.testing.assert_close(ours, same, atol=1e-5, rtol=1e-5)
                torch.testing.assert_close(base.logprobs(leaf, targets), values[0], atol=1e-6, rtol=1e-6)
            (torch.stack(values) * weights).sum().backward()
            assert leaf.grad is not None
            found.append([*values, leaf.grad, *(copy.copy(p.grad) for p in head.parameters() if moves)])
            head.zero_grad()
    for place, (ours, expected) in enumerate(zip(*found, strict=True)):
        assert place > 1 or ours.dtype == torch.float32
        exact = place < 2 or dtype == torch.float32
        size = 1e-5 if exact else 0.03
        torch.testing.assert_close(ours, expected, atol=size * max(1.0, expected.abs().max().item()), rtol=size)


def test_logprobs_at_rows_that_predict_several_targets() -> None:
    base, seen = tiny_base().copy_to_move(), []
    hidden = torch.randn(TOKENS, base.hidden_size)
    base.model.get_output_embeddings().register_forward_hook(lambda _m, _a, out: seen.append(out.shape[:-1].numel()))
    rows = torch.randint(0, TOKENS, (2 * TOKENS,), generator=torch.Generator().manual_seed(1))
    targets = torch.randint(0, 256, (2 * TOKENS,), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        found = logprobs_at(base.vocabulary_head, hidden, rows, targets)
        assert max(seen) == ROWS and sum(seen) == TOKENS
        torch.testing.assert_close(found, base.logprobs(hidden[rows], targets), atol=1e-6, rtol=1e-6)
