"""Weight decay pulls toward the base, whatever a method trains."""

from __future__ import annotations

import pytest
import torch
from tests.tiny import tiny_base

from tunescope.base import Base
from tunescope.data.template import default_template
from tunescope.methods import IA3, Adapter, Customized, Full, LoRA, Method, PTuning, customize
from tunescope.training.optimizer import Optimizer

METHODS: dict[str, Method] = {
    "lora": LoRA(rank=2),
    "dora": LoRA(rank=2, dora=True),
    "ia3": IA3(),
    "adapter": Adapter(),
    "full": Full(),
}


def _moved(method: Method, base: Base) -> Customized:
    """A customization away from its identity, with gradients of zero."""
    customized = customize(base, method, default_template(base.tokenizer))
    trained = [*customized.customization.parameters()]
    trained += [*customized.base.model.parameters()] if customized.moves_base else []
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in trained:
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype))
            parameter.requires_grad_(True).grad = torch.zeros_like(parameter)
    return customized


def _logits(customized: Customized) -> torch.Tensor:
    ids = torch.arange(24).view(2, 12)
    with torch.no_grad(), customized.active() as base:
        return base.forward(ids, torch.ones_like(ids))


def _step(customized: Customized, decay: float) -> None:
    optimizer = Optimizer(customized, lr=0.5, weight_decay=decay)
    optimizer.gradient_norm(1.0)
    optimizer.step(1.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", METHODS)
def test_decayed_to_the_end_nothing_is_customized(name: str, dtype: torch.dtype) -> None:
    base = tiny_base("qwen2", dtype=dtype)  # it has biases, and norms
    customized = _moved(METHODS[name], base)
    plain = _logits(customize(base, LoRA(), default_template(base.tokenizer)))
    assert not torch.allclose(_logits(customized), plain, atol=1e-2)
    _step(customized, 2.0)  # a rate of 0.5: the whole way
    customized.finish()
    assert torch.allclose(_logits(customized), plain, atol=1e-6)


def test_a_step_goes_the_share_of_the_way() -> None:
    customized = _moved(IA3(), tiny_base())
    vector = next(parameter for name, parameter in customized.customization.named_parameters() if "scale" in name)
    before = vector.detach().clone()
    _step(customized, 0.5)  # a rate of 0.5: a quarter of the way to one
    torch.testing.assert_close(vector.detach(), before + 0.25 * (1 - before))


def test_what_has_no_gradient_and_no_decay_stays() -> None:
    customized = _moved(LoRA(rank=2, dora=True), tiny_base())
    before = {name: p.detach().clone() for name, p in customized.customization.named_parameters()}
    _step(customized, 0.0)
    assert all(torch.equal(p, before[name]) for name, p in customized.customization.named_parameters())
    for parameter in customized.customization.parameters():
        parameter.grad = None
    _step(customized, 0.5)
    assert all(torch.equal(p, before[name]) for name, p in customized.customization.named_parameters())


def test_soft_prompts_decay_to_zero_as_other_weights_do() -> None:
    base = tiny_base()
    customized = customize(base, PTuning(virtual_tokens=3), default_template(base.tokenizer))
    for name, parameter in customized.customization.named_parameters():
        assert torch.equal(customized.identity_of(name), torch.zeros_like(parameter)), name
