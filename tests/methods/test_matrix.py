"""Every method on every architecture, with the checks written once.

A new method is one line in ``METHODS``.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import pytest
import torch
from tests.tiny import ARCHITECTURES, tiny_base

from tunescope.base import Base
from tunescope.base.fingerprint import hash_weights
from tunescope.data.template import Template, default_template
from tunescope.errors import BankError, BaseModelError
from tunescope.methods import IA3, Adapter, Customized, LoRA, Method, PromptTuning, PTuning, at_rest, compose, customize


@dataclass(frozen=True)
class Case:
    method: Method
    identity: bool = True  # whether it has no effect at the start
    hidden_at_start: tuple[str, ...] = ()  # parameters whose gradient is zero while others are still zero
    experts: bool = True  # whether it fits mixtures of experts, whose feed-forward sites are refused


METHODS: dict[str, Case] = {
    "lora": Case(LoRA(rank=2), hidden_at_start=("A",)),
    "lora-all-linear": Case(LoRA(rank=3, targets=("all-linear",)), hidden_at_start=("A",)),
    "rslora-layers": Case(LoRA(rank=2, rslora=True, layers=(1,), targets=("o", "k")), hidden_at_start=("A",)),
    "dora": Case(LoRA(rank=2, dora=True), hidden_at_start=("A",)),
    "ia3": Case(IA3(), experts=False),
    "ia3-attention": Case(IA3(targets=("k", "v"), feedforward=())),
    "adapter-pfeiffer": Case(Adapter(), hidden_at_start=("down.weight", "down.bias")),
    "adapter-houlsby": Case(
        Adapter(placement="houlsby", bottleneck=3, activation="gelu", layers=(0,)),
        hidden_at_start=("down.weight", "down.bias"),
    ),
    "prompt-tuning": Case(PromptTuning(virtual_tokens=5), identity=False),
    "p-tuning-mlp": Case(PTuning(virtual_tokens=5), identity=False),
    "p-tuning-lstm": Case(PTuning(virtual_tokens=5, encoder="lstm", encoder_hidden=6), identity=False),
    "prompt-tuning+lora": Case(
        compose(PromptTuning(virtual_tokens=3), LoRA(rank=2)), identity=False, hidden_at_start=("A",)
    ),
    "lora+ia3": Case(
        compose(LoRA(targets=("k", "v")), IA3(targets=("k", "v"), feedforward=())), hidden_at_start=("A",)
    ),
}
CELLS = [(name, arch) for name, case in METHODS.items() for arch in ARCHITECTURES if case.experts or arch != "mixtral"]
EVERY_CELL = pytest.mark.parametrize(("name", "arch"), CELLS)


def _ids() -> torch.Tensor:
    return torch.randint(0, 256, (2, 12), generator=torch.Generator().manual_seed(3))


def _logits(base: Base, template: Template) -> torch.Tensor:
    """[2, 12, vocabulary], of the text alone."""
    virtual = -1 - torch.arange(template.virtual_tokens)
    ids = torch.cat([virtual.expand(2, -1), _ids()], dim=1)
    return base.forward(ids, torch.ones_like(ids))[:, template.virtual_tokens :]


@functools.cache
def _plain(arch: str) -> torch.Tensor:
    with torch.no_grad():
        return _logits(tiny_base(arch), Template(style="plain"))


@functools.cache
def _weights(arch: str) -> str:
    return hash_weights(tiny_base(arch).model)


def _start(name: str, arch: str) -> Customized:
    base = tiny_base(arch)
    return customize(base, METHODS[name].method, default_template(base.tokenizer), seed=1)


def _moved(name: str, arch: str, *, finish: bool = True) -> Customized:
    """A customization whose every tensor differs from its start, as after training."""
    customized = _start(name, arch)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in customized.customization.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    if finish:
        customized.finish()
    return customized


@EVERY_CELL
def test_it_begins_at_the_base(name: str, arch: str) -> None:
    customized = _start(name, arch)
    with torch.no_grad(), customized.active() as base:
        found = _logits(base, customized.template)
    assert torch.equal(found, _plain(arch)) == METHODS[name].identity


@EVERY_CELL
def test_its_parameters_and_no_others_get_gradients(name: str, arch: str) -> None:
    before = _weights(arch)
    for customized, hidden in ((_start(name, arch), METHODS[name].hidden_at_start), (_moved(name, arch), ())):
        customization = customized.customization
        customization.requires_grad_(True).train()
        with customized.active() as base:
            _logits(base, customized.template).square().mean().backward()
        parameters = dict(customization.named_parameters())
        assert parameters
        for parameter, tensor in parameters.items():
            assert tensor.grad is not None, parameter
            zero = bool((tensor.grad == 0).all())
            assert zero == any(parameter.endswith(f".{ending}") for ending in hidden), parameter
        assert all(p.grad is None and not p.requires_grad for p in base.model.parameters())
    assert hash_weights(tiny_base(arch).model) == before


@EVERY_CELL
def test_switched_off_the_base_is_itself(name: str, arch: str) -> None:
    customized = _moved(name, arch)
    with torch.no_grad():
        with customized.active() as base:
            changed = _logits(base, customized.template)
        assert not torch.allclose(changed, _plain(arch), atol=1e-3)
        assert torch.equal(_logits(base, Template(style="plain")), _plain(arch))


@EVERY_CELL
def test_tensors_at_rest_make_it_again(name: str, arch: str) -> None:
    customized = _moved(name, arch)
    kept = customized.customization.tensors()
    again = at_rest(customized.base, customized.method, customized.template)
    again.customization.load_tensors(kept)
    assert again.trainable_parameters == customized.trainable_parameters
    assert all(torch.equal(kept[key], tensor) for key, tensor in again.customization.tensors().items())
    with torch.no_grad():
        with customized.active() as base:
            expected = _logits(base, customized.template)
        with again.active() as base:
            assert torch.equal(_logits(base, again.template), expected)


@pytest.mark.parametrize("name", METHODS)
def test_tensors_that_do_not_fit_are_refused(name: str) -> None:
    customization = _moved(name, "llama").customization
    kept = customization.tensors()
    first = next(iter(kept))
    with pytest.raises(BankError, match=f"Missing tensors: {first}"):
        customization.load_tensors({key: tensor for key, tensor in kept.items() if key != first})
    with pytest.raises(BankError, match=r"Unexpected tensors: 7\.q\.low_rank\.A"):
        customization.load_tensors({**kept, "7.q.low_rank.A": torch.zeros(2, 2)})
    with pytest.raises(BankError, match=f"{first} has shape"):
        customization.load_tensors({**kept, first: torch.zeros(3, 77)})
    assert all(torch.equal(kept[key], tensor) for key, tensor in customization.tensors().items())


@pytest.mark.parametrize("name", [name for name, case in METHODS.items() if not case.experts])
def test_experts_are_refused(name: str) -> None:
    with pytest.raises(BaseModelError, match="mixture of experts"):
        _start(name, "mixtral")


@pytest.mark.parametrize("name", METHODS)
def test_the_same_seed_begins_alike(name: str) -> None:
    first, second = _start(name, "llama"), _start(name, "llama")
    other = customize(first.base, first.method, default_template(first.base.tokenizer), seed=2)
    tensors = first.customization.tensors()
    assert all(torch.equal(tensors[key], tensor) for key, tensor in second.customization.tensors().items())
    drawn = any(not torch.equal(tensors[key], tensor) for key, tensor in other.customization.tensors().items())
    assert drawn == (not name.startswith("ia3"))


@pytest.mark.parametrize("name", METHODS)
def test_bfloat16_is_near_float32(name: str) -> None:
    exact, rough = _moved(name, "llama"), None
    base = tiny_base("llama", dtype=torch.bfloat16)
    rough = at_rest(base, exact.method, exact.template)
    rough.customization.load_tensors(exact.customization.tensors())
    with torch.no_grad(), exact.active() as running:
        expected = _logits(running, exact.template)
    with torch.no_grad(), rough.active() as running:
        found = _logits(running, rough.template)
    assert found.dtype == torch.bfloat16
    assert (found.float() - expected).abs().mean() < 0.05 * expected.abs().mean()
