"""Our attention and our masks give what the plain ones give, on every architecture."""

from __future__ import annotations

import pytest
import torch
from tests.tiny import ARCHITECTURES, VOCABULARY, tiny_base, tiny_model

from tunescope.base import attention

LENGTH = 30  # longer than the tiny models' sliding window


def _ids(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("side", ["right", "left"])
def test_grouped_attention_equals_eager(arch: str, side: str) -> None:
    ids, mask = _ids(3, LENGTH), torch.ones(3, LENGTH, dtype=torch.long)
    for row, padding in ((1, 5), (2, 20)):
        mask[row, LENGTH - padding :] = 0
    if side == "left":
        mask = mask.flip(1)
    base, plain = tiny_base(arch), tiny_model(arch, attention="eager")
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
        base.forward(past, torch.ones_like(past), cache=cache)
        packed = torch.cat(branches)[None]
        branch = torch.tensor([[1] * 6 + [2] * 3])
        position = torch.cat([20 + torch.arange(len(b)) for b in branches])[None]
        found = base.forward(packed, base.masks(branch, position, past=20), position_ids=position, cache=cache)[0]
        for number, own in enumerate(branches, start=1):
            whole = torch.cat([past[0], own])[None]
            alone = base.forward(whole, torch.ones_like(whole))[0]
            torch.testing.assert_close(found[branch[0] == number], alone[20:], atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_kept_positions_are_those_of_all(arch: str) -> None:
    base, ids = tiny_base(arch), _ids(2, 10)
    keep = torch.rand(2, 10, generator=torch.Generator().manual_seed(0)) < 0.4
    with torch.no_grad():
        torch.testing.assert_close(
            base.forward(ids, torch.ones_like(ids), keep=keep), base.forward(ids, torch.ones_like(ids))[keep]
        )


def test_long_texts_take_the_fused_kernel_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    base, ids = tiny_base("llama"), _ids(2, 20)
    mask = torch.ones_like(ids)
    mask[1, 12:] = 0
    with torch.no_grad():
        plain = base.forward(ids, mask)
        monkeypatch.setattr(attention, "_LARGEST_SCORES", 10)
        torch.testing.assert_close(base.forward(ids, mask)[mask.bool()], plain[mask.bool()], atol=2e-5, rtol=1e-5)


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
