"""The Llama family written out against the generic path, effect by effect and with every effect at once."""

from __future__ import annotations

import gc

import pytest
import torch
from tests.inference.mix import METHODS, customized
from tests.tiny import ARCHITECTURES, tiny_base
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from tunescope.base import Base
from tunescope.inference.compiled import Compiled
from tunescope.inference.llama import LlamaRunner
from tunescope.inference.packed_linear import packs
from tunescope.inference.passes import Passes
from tunescope.methods import IA3

FAMILY = ["llama", "mistral", "qwen2", "qwen3", "llama:nf4"]
WITH_EFFECTS = [name for name, method in METHODS.items() if method.trains == "effects"]


def logits(base: Base, effects: list[Compiled | None], *, generic: bool) -> torch.Tensor:
    """Of a prompt of seven tokens and of a step after it, every position."""
    passes = Passes(base, len(effects))
    if generic:
        passes._llama = None
    generator = torch.Generator().manual_seed(0)
    found = []
    with torch.inference_mode():
        for begin, length in ((0, 7), (7, 1)):
            ids = torch.randint(0, 250, (len(effects), length), generator=generator)
            if not begin:  # a virtual token of those that have some
                ids[:, 0] = torch.tensor([-1 if each is not None and each.table is not None else 5 for each in effects])
            places = torch.arange(begin, begin + length).expand(len(effects), length)
            keep = torch.ones_like(ids, dtype=torch.bool)
            slots = list(range(len(effects)))
            found.append(passes.logits(passes.hidden(effects, slots, ids, places, places, keep)).float())
    return torch.cat(found)


@pytest.mark.parametrize("arch", FAMILY)
@pytest.mark.parametrize("names", [*([name] for name in WITH_EFFECTS), WITH_EFFECTS], ids=lambda names: "+".join(names))
def test_both_paths_agree(arch: str, names: list[str]) -> None:
    base = tiny_base(arch)
    effects = [None, *(Compiled.of(customized(name, arch).customization, base) for name in names)]
    assert torch.allclose(logits(base, effects, generic=False), logits(base, effects, generic=True), atol=1e-4)


@pytest.mark.parametrize("arch", FAMILY)
def test_weights_in_blocks_give_the_same_numbers(arch: str) -> None:
    base = tiny_base(arch, dtype=torch.bfloat16)
    if not packs(base):
        pytest.skip("this processor multiplies no bfloat16 matrices")

    def of(on: Base) -> list[Compiled | None]:
        return [None, *(Compiled.of(customized(name, arch).customization, on) for name in WITH_EFFECTS)]

    exact = logits(tiny_base(arch), of(tiny_base(arch)), generic=True)
    ours, theirs = (logits(base, of(base), generic=generic) - exact for generic in (False, True))
    assert ours.square().mean() < 1.5 * theirs.square().mean()  # both round to bfloat16, at other places


def test_it_is_taken_where_it_fits() -> None:
    assert [arch for arch in ARCHITECTURES if LlamaRunner.applies(tiny_base(arch))] == FAMILY


def test_scales_of_one_joint_input_take_the_generic_path() -> None:
    from tunescope.data.template import default_template
    from tunescope.methods import customize

    base = tiny_base("llama")
    made = customize(
        base, IA3(targets=("gate", "down"), feedforward=("gate", "down")), default_template(base.tokenizer)
    )
    with torch.no_grad():
        for parameter in made.customization.parameters():
            parameter.mul_(1.5)
    effects = [None, Compiled.of(made.customization, base)]
    assert torch.equal(logits(base, effects, generic=False), logits(base, effects, generic=True))


@pytest.mark.parametrize("arch", FAMILY)
def test_prompts_need_no_mask_off_the_cpu(arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mask rules out flash attention: rows that begin with the pass say that they are causal, padded ones too."""
    base = tiny_base(arch)
    ids = torch.randint(0, 250, (2, 9), generator=torch.Generator().manual_seed(0))
    places = torch.arange(9).expand(2, 9).clone()
    places[1, 6:] = -1
    keep = torch.zeros_like(ids, dtype=torch.bool)
    keep[0, 8] = keep[1, 5] = True
    given: list[tuple[bool, bool]] = []

    def attend(*args: object, **kwargs: object) -> object:
        given.append((args[4] is None, kwargs.get("is_causal", False) is True))
        return sdpa_attention_forward(*args, **kwargs)  # type: ignore[arg-type]

    found = []
    for off_the_cpu in (False, True):
        passes = Passes(base, 2)
        assert passes._llama is not None
        if off_the_cpu:
            passes._llama.causal = True
            for layer in passes._llama._layers:
                layer._attend = attend
        with torch.inference_mode():
            found.append(passes.logits(passes.hidden([None, None], [0, 1], ids, places.clamp(min=0), places, keep)))
    assert torch.allclose(*found, atol=1e-4)
    assert set(given) == {(True, True)}


def test_hooks_are_registered_once_and_go_with_their_runner() -> None:
    base = tiny_base("gpt2")
    effects = [None, *(Compiled.of(customized(name, "gpt2").customization, base) for name in ("lora", "adapter"))]
    modules = list(base.model.modules())

    def hooks() -> list[int]:
        return [key for m in modules for key in (*m._forward_hooks, *m._forward_pre_hooks)]

    before = hooks()
    passes = Passes(base, 3)
    ids = torch.arange(6).view(3, 2)

    def step(passes: Passes, number: int) -> None:
        places = torch.tensor([[2 * number, 2 * number + 1]] * 3)
        with torch.inference_mode():
            passes.hidden(effects, [0, 1, 2], ids, places, places, torch.ones_like(ids, dtype=torch.bool))

    step(passes, 0)
    registered = hooks()
    step(passes, 1)
    assert registered == hooks() != before
    alone = base.forward(ids, torch.ones_like(ids))  # between passes the base is what it was
    del passes
    gc.collect()
    assert hooks() == before
    assert torch.equal(alone, base.forward(ids, torch.ones_like(ids)))
