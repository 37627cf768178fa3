"""Our attention and our masks give what the plain ones give, on every architecture."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.tiny import ARCHITECTURES, VOCABULARY, WHOLE, tiny_base, tiny_model, tiny_tokenizer
from torch import nn

from tunescope.base import Base, attention
from tunescope.base.attention import additive, grouped_attention
from tunescope.data.encoding import Encoder
from tunescope.data.rows import Row
from tunescope.data.template import default_template
from tunescope.methods import LoRA, customize
from tunescope.objectives import SFT

LENGTH = 30  # longer than the tiny models' sliding window


def _ids(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("arch", WHOLE)
@pytest.mark.parametrize("side", ["right", "left"])
def test_grouped_attention_equals_eager(arch: str, side: str) -> None:
    ids, mask = _ids(3, LENGTH), torch.ones(3, LENGTH, dtype=torch.long)
    for row, padding in ((1, 5), (2, 20)):
        mask[row, LENGTH - padding :] = 0
    if side == "left":
        mask = mask.flip(1)
    # transformers' eager Falcon adds its linear biases twice (5.23).
    base, plain = tiny_base(arch), tiny_model(arch, attention="sdpa" if arch == "falcon_alibi" else "eager")
    position = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        expected = plain(input_ids=ids, attention_mask=mask, position_ids=position).logits
        found = base.forward(ids, mask)
    assert found.shape == (3, LENGTH, VOCABULARY)
    torch.testing.assert_close(found[mask.bool()], expected[mask.bool()], atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_branches_are_computed_as_if_alone(arch: str) -> None:
    base = tiny_base(arch)
    trunk, branches = _ids(1, 16)[0], [_ids(1, n)[0] + 0 for n in (5, 9, 1)]
    packed = torch.cat([trunk, *branches, torch.zeros(3, dtype=torch.long)])[None]
    branch = torch.cat(
        [torch.zeros(16), *(torch.full((len(b),), i + 1.0) for i, b in enumerate(branches)), -torch.ones(3)]
    ).long()[None]
    position = torch.cat([torch.arange(16), *(16 + torch.arange(len(b)) for b in branches), torch.zeros(3)]).long()[
        None
    ]
    with torch.no_grad():
        found = base.forward(packed, base.masks(branch, position), position_ids=position)[0]
        for number, own in enumerate(branches, start=1):
            whole = torch.cat([trunk, own])[None]
            alone = base.forward(whole, torch.ones_like(whole))[0]
            torch.testing.assert_close(found[branch[0] == number], alone[16:], atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_branches_after_a_cache(arch: str) -> None:
    from transformers import DynamicCache

    base = tiny_base(arch)
    past, branches = _ids(1, 20), [_ids(1, n)[0] for n in (6, 3)]
    with torch.no_grad():
        # Without the configuration the cache keeps every token of sliding layers too, as the masks expect.
        cache = DynamicCache()
        base.hidden(past, torch.ones_like(past), cache=cache)
        packed = torch.cat(branches)[None]
        branch = torch.tensor([[1] * 6 + [2] * 3])
        position = torch.cat([20 + torch.arange(len(b)) for b in branches])[None]
        mask = base.slot_masks(20 + torch.arange(9)[None], 29, branch, position)
        found = base.vocabulary_head(base.hidden(packed, mask, position_ids=position, cache=cache)[0])
        for number, own in enumerate(branches, start=1):
            whole = torch.cat([past[0], own])[None]
            alone = base.forward(whole, torch.ones_like(whole))[0]
            torch.testing.assert_close(found[branch[0] == number], alone[20:], atol=2e-5, rtol=1e-5)


def _eager(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    key, value = (each.repeat_interleave(query.shape[1] // each.shape[1], dim=1) for each in (key, value))
    weights = torch.softmax(query @ key.transpose(2, 3) * query.shape[3] ** -0.5 + mask, dim=-1)
    return (weights @ value).transpose(1, 2)


@given(
    rows=st.integers(1, 4),
    groups=st.integers(1, 2),
    heads=st.integers(1, 3),
    length=st.integers(1, 24),
    past=st.integers(0, 9),
    queries=st.integers(1, 12),
    scores=st.integers(1, 4000),
    seed=st.integers(0, 2**16),
)
def test_attention_by_blocks_equals_eager_attention(
    rows: int, groups: int, heads: int, length: int, past: int, queries: int, scores: int, seed: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    shapes = [(rows, groups * heads, length, 8), *[(rows, groups, past + length, 8)] * 2]
    tensors = [torch.randn(shape, generator=draw, requires_grad=True) for shape in shapes]
    seen = torch.rand(rows, 1, length, past + length, generator=draw) < torch.rand((), generator=draw)
    seen |= torch.eye(length, past + length, dtype=torch.bool).roll(past, dims=1)  # each token sees itself
    mask = additive(seen, torch.float32)
    towards = torch.randn(rows, length, groups * heads, 8, generator=draw)
    expected = _eager(*tensors, mask)
    expected_grads = torch.autograd.grad(expected, tensors, towards)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "_QUERIES", queries)
        patch.setattr(attention, "_SCORES", scores)
        found, _ = grouped_attention(nn.Module(), *tensors, mask)
        grads = torch.autograd.grad(found, tensors, towards)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    for grad, wanted in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(grad, wanted, atol=1e-5, rtol=1e-5)


def test_blocks_leave_out_keys_that_nobody_sees() -> None:
    mask = additive(torch.ones(600, 600, dtype=torch.bool).tril()[None, None], torch.float32)
    blocks = attention._blocks(mask, mask, 3)
    assert [(block.of_queries[2], block.of_keys[2], block.masked) for block in blocks] == [
        (slice(0, 256), slice(0, 256), 1),
        (slice(256, 512), slice(0, 512), 257),
        (slice(512, 768), slice(0, 600), 513),
    ]
    assert sum(block.scores for block in blocks) < 0.7 * 3 * 600 * 600


def test_a_mask_is_looked_at_once_for_all_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    cuts: list[torch.Size] = []
    cut = attention._cut

    def counted(mask: torch.Tensor, heads: int) -> list[attention._Block]:
        cuts.append(mask.shape)
        return cut(mask, heads)

    monkeypatch.setattr(attention, "_cut", counted)
    query, key, other = (torch.randn(1, heads, 5, 8) for heads in (4, 2, 1))
    mask = torch.zeros(1, 1, 5, 5)
    for _layer in range(3):
        grouped_attention(nn.Module(), query, key, key, mask)
    assert cuts == [mask.shape]
    grouped_attention(nn.Module(), query[..., :3, :], other, other, mask[..., :3, :])
    assert len(cuts) == 2
    known = len(attention._known)
    del mask
    assert len(attention._known) == known - 1


def test_attention_keeps_no_scores_for_the_backward_pass() -> None:
    """What is kept is linear in the length."""

    def kept(length: int) -> int:
        sizes: list[int] = []

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            sizes.append(tensor.untyped_storage().nbytes())
            return tensor

        query, key = (torch.randn(1, heads, length, 8, requires_grad=True) for heads in (4, 2))
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            grouped_attention(nn.Module(), query, key, key, torch.zeros(1).expand(1, 1, length, length))
        return sum(sizes)

    assert 0 < kept(600) < 2.1 * kept(300)


def test_gradients_equal_those_of_eager() -> None:
    ids = _ids(2, 20)
    grads = []
    for kind in (None, "eager"):
        model = tiny_model("llama", attention=kind)
        model(input_ids=ids).logits.square().mean().backward()
        grads.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    for name, grad in grads[0].items():
        torch.testing.assert_close(grad, grads[1][name], atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_rows_padded_on_the_right_need_no_mask(arch: str) -> None:
    base, ids = tiny_base(arch), _ids(3, LENGTH)
    mask = torch.ones(3, LENGTH, dtype=torch.long)
    mask[1, 20:] = mask[2, 1:] = 0
    with torch.no_grad():
        expected, found = base.hidden(ids, mask), base.hidden(ids, None)
    torch.testing.assert_close(found[mask.bool()], expected[mask.bool()], atol=2e-5, rtol=1e-5)


def test_training_leaves_flash_attention_possible(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that share no prefix are padded on the right and need no mask."""
    base = Base(tiny_model(attention="sdpa"), tiny_tokenizer())
    rows = [Row(({"role": "user", "content": letter * 30},), "y", 1) for letter in "xz"]
    encoder, objective = (
        Encoder(base.tokenizer, default_template(base.tokenizer, style="plain"), base.context_length),
        SFT(),
    )
    called = []
    attend = nn.functional.scaled_dot_product_attention

    def recorded(*given: torch.Tensor, **options: Any) -> torch.Tensor:
        called.append((options.get("attn_mask"), options.get("is_causal")))
        return attend(*given, **options)

    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", recorded)
    customized = customize(base, LoRA(), default_template(base.tokenizer))
    objective.batch_loss(customized, objective.collate(objective.examples(rows, encoder)))
    assert called == [(None, True)] * 2
