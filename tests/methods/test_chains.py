"""Customizations that start from another: every method on top of every method, through hooks, engine and weights."""

from __future__ import annotations

import functools
import itertools
from pathlib import Path

import pytest
import torch
from tests.inference.mix import customized, reference_logits
from tests.tiny import tiny_base

from tunescope.bank.merge import merge, merge_into_base, merged_model
from tunescope.data.template import default_template
from tunescope.errors import BankError, TrainingError
from tunescope.inference import Engine, Sampling
from tunescope.methods import (
    IA3,
    Adapter,
    Customized,
    Full,
    LoRA,
    Method,
    PromptTuning,
    PTuning,
    System,
    compose,
    customize,
)
from tunescope.methods.fingerprint import hash_customized

METHODS: dict[str, Method] = {
    "lora": LoRA(rank=2, targets=("q", "v", "down")),
    "dora": LoRA(rank=3, dora=True, targets=("q", "o", "up")),
    "ia3": IA3(),
    "ia3-q": IA3(targets=("q", "o"), feedforward=()),
    "adapter": Adapter(bottleneck=4, activation="gelu"),
    "houlsby": Adapter(bottleneck=3, placement="houlsby"),
    "prompt-tuning": PromptTuning(virtual_tokens=3),
    "p-tuning": PTuning(virtual_tokens=2),
    "dora+ia3": compose(LoRA(rank=2, dora=True, targets=("k", "v")), IA3()),
}
MERGEABLE = ("lora", "dora", "ia3", "ia3-q", "dora+ia3")
ARCHITECTURES = ("llama", "gpt2", "falcon_alibi")  # plain; one fused map with biases; fused in another order
PAIRS = list(itertools.product(METHODS, METHODS))
EVERY_PAIR = pytest.mark.parametrize(("below", "above"), PAIRS)
IDS = [5, 90, 17, 33, 8, 120, 64]


def moved(made: Customized, seed: int) -> Customized:
    """Its tensors moved so far that every effect matters, and finished."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in made.customization.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    made.finish()
    return made


@functools.cache
def start(name: str, arch: str) -> Customized:
    base = tiny_base(arch)
    return moved(customize(base, METHODS[name], default_template(base.tokenizer), seed=1), 5)


def on_top(name: str, below: Customized) -> Customized:
    return customize(below.base, METHODS[name], below.template, seed=2, start=below.customization)


@functools.cache
def chain(below: str, above: str, arch: str) -> Customized:
    return moved(on_top(above, start(below, arch)), 6)


def prompt(made: Customized) -> list[int]:
    return [*made.template.virtual_ids, *IDS]


@pytest.mark.parametrize("arch", ARCHITECTURES)
@EVERY_PAIR
def test_it_begins_at_what_it_starts_from(below: str, above: str, arch: str) -> None:
    first, made = start(below, arch), on_top(above, start(below, arch))
    assert made.reference is first.customization
    with torch.no_grad():
        expected, found = reference_logits(first, prompt(first), [1]), reference_logits(made, prompt(made), [1])
    assert torch.equal(found, expected) == (METHODS[above].effect is None or "tuning" not in above)


@EVERY_PAIR
def test_only_the_new_one_gets_gradients(below: str, above: str) -> None:
    made = on_top(above, start(below, "llama"))
    with made.active() as base:
        ids = torch.tensor([prompt(made)])
        base.forward(ids, torch.ones_like(ids)).square().mean().backward()
    assert all(parameter.grad is not None for parameter in made.customization.parameters())
    frozen = start(below, "llama").customization
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in frozen.parameters())


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_engine_serves_chains_beside_anything(arch: str) -> None:
    engine = Engine(tiny_base(arch))
    made = {f"{below} {above}": chain(below, above, arch) for below, above in PAIRS}
    made |= {name: start(name, arch) for name in METHODS}
    for name, each in made.items():
        engine.load(name, each)
    sampling = Sampling(max_new_tokens=4, min_new_tokens=4, logprobs=True)
    handles = {name: engine.submit_ids(prompt(each), name, sampling) for name, each in made.items()}
    while not all(handle.done for handle in handles.values()):
        engine.step()
    for name, handle in handles.items():
        answer = handle.result()
        assert len(answer.tokens) == 4, answer
        logits = reference_logits(made[name], prompt(made[name]), list(answer.tokens)).log_softmax(-1)
        expected = [logits[i, token].item() for i, token in enumerate(answer.tokens)]
        assert answer.logprobs == pytest.approx(expected, abs=2e-4), name


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize(("below", "above"), list(itertools.product(MERGEABLE, MERGEABLE)))
def test_merged_weights_compute_the_chain(below: str, above: str, arch: str) -> None:
    made = chain(below, above, arch)
    model = merged_model(made.base, made.customization)
    with torch.no_grad():
        found = model(input_ids=torch.tensor([IDS])).logits[0, -1:]
    torch.testing.assert_close(found, reference_logits(made, IDS, [1]), atol=2e-5, rtol=1e-4)


def test_weights_of_a_chain_with_what_no_weights_can_do_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BankError, match="nonlinear"):
        merge_into_base(chain("adapter", "lora", "llama"), tmp_path / "merged")
    with pytest.raises(BankError, match="starts from a ia3 entry"):
        merge([start("lora", "llama"), chain("ia3", "lora", "llama")])
    merged = merge_into_base(chain("ia3", "lora", "llama"), tmp_path / "merged")
    assert merged.max_error <= 1e-4 < merged.mean_logit


def test_three_act_one_after_the_other() -> None:
    made = chain("lora", "adapter", "llama")
    third = moved(on_top("houlsby", made), 7)
    assert [layer.method.name for layer in third.customization.layers] == ["lora", "adapter", "adapter"]
    engine = Engine(third.base)
    engine.load("three", third)
    answer = engine.generate_ids([IDS], "three", Sampling(max_new_tokens=3, min_new_tokens=3, logprobs=True))[0]
    logits = reference_logits(third, IDS, list(answer.tokens)).log_softmax(-1)
    assert answer.logprobs == pytest.approx([logits[i, t].item() for i, t in enumerate(answer.tokens)], abs=2e-4)
    tensors = third.customization.all_tensors()
    assert {name.split(".layers")[0].count("start.") for name in tensors} == {0, 1, 2}


def test_virtual_tokens_of_both_stand_in_order() -> None:
    first, made = start("prompt-tuning", "llama"), chain("prompt-tuning", "p-tuning", "llama")
    assert made.template.virtual_tokens == 5
    assert torch.equal(made.customization.virtual_table()[:3], first.customization.virtual_table())


def test_what_cannot_be_on_top_says_why() -> None:
    below = start("prompt-tuning", "llama")
    with pytest.raises(TrainingError, match="--splits"):
        customize(below.base, PromptTuning(virtual_tokens=2, splits=(2,)), below.template, start=below.customization)
    with pytest.raises(TrainingError, match="leave no room"):
        customize(below.base, PromptTuning(virtual_tokens=510), below.template, start=below.customization)
    with pytest.raises(TrainingError, match="--to transformers"):
        customize(below.base, Full(), below.template, start=below.customization)


def test_what_it_starts_from_makes_it_another_one() -> None:
    """Prompting on top has no tensors of its own: unfinished work of one must not be continued by the other."""
    base, found = tiny_base(), set()
    for start in (customized("lora"), customized("ia3"), None):
        below = None if start is None else start.customization
        template = default_template(base.tokenizer) if start is None else start.template
        found.add(hash_customized(customize(base, System(instruction="Be brief."), template, start=below)))
    assert len(found) == 3
