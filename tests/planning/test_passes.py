"""What a pass takes, counted on sketches, against the same pass on real tensors."""

from __future__ import annotations

import copy

import pytest
import torch
from tests.tiny import ARCHITECTURES, tiny_base, tiny_config, tiny_tokenizer

import tunescope as ts
from tunescope.base.attention import is_replaceable
from tunescope.base.sketch import Outline
from tunescope.data.template import Template, default_template
from tunescope.errors import TunescopeError
from tunescope.methods import Customized, Method, customize
from tunescope.methods.acting import Hooks
from tunescope.methods.registry import METHODS
from tunescope.objectives import Objective
from tunescope.planning.counting import Counting
from tunescope.planning.passes import Pass, Places, Watch, training_pass
from tunescope.planning.texts import Load, Texts, examples_for, load_of
from tunescope.training import TrainSettings

TRAINING = [name for name in METHODS.own if METHODS.load(name).trains != "nothing"]
OBJECTIVES: list[Objective] = [ts.SFT(), ts.DPO(), ts.Reward(), ts.Attributes(), ts.PPO(reward=("words:3",))]
CPU = torch.device("cpu")


def outlined(arch: str = "llama", layers: int = 2) -> Outline:
    config = copy.deepcopy(tiny_config(arch))
    config.num_hidden_layers = layers
    return Outline(f"tiny-{arch}", config, tiny_tokenizer())


def load_for(objective: Objective, template: Template) -> Load:
    compared = isinstance(objective, ts.DPO | ts.Reward)
    texts = Texts.made_up(12, 40, compared=compared)
    return load_of(objective, examples_for(objective, texts.all, template.virtual_ids), TrainSettings(), 1)


def counted(method: Method, objective: Objective, arch: str = "llama", layers: int = 2) -> Pass:
    template = method.prompt(default_template(tiny_tokenizer()), (), None, 0)
    places = Places(outlined(arch, layers), torch.float32, CPU)
    return places.training(method, objective, template, load_for(objective, template).largest)


def on_real_tensors(method: Method, objective: Objective, arch: str) -> tuple[Counting, Watch, Customized]:
    base = tiny_base(arch)
    template = default_template(base.tokenizer)
    made = customize(base, method, template, added=objective.effects(base, torch.Generator().manual_seed(0)))
    if made.moves_base:
        made.base.model.requires_grad_(True)
    batch = load_for(objective, made.template).largest
    own = (*made.customization.parameters(), *made.base.model.parameters(), *made.base.model.buffers())
    counting = Counting(own)
    watch = Watch(counting)
    with counting, Hooks(made.base, [made.customization]) as hooks:
        training_pass(objective, batch, recompute=False)(made, hooks, watch)
    return counting, watch, made


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda each: each.name)
@pytest.mark.parametrize("method", TRAINING)
def test_a_sketch_counts_what_real_tensors_take(method: str, objective: Objective) -> None:
    made = METHODS.load(method)()
    planned = counted(made, objective)
    counting, watch, real = on_real_tensors(made, objective, "llama")
    assert planned.work.flops == counting.work.flops
    assert planned.trained == real.trainable_parameters
    assert planned.stretches == pytest.approx(watch.found(), rel=0.01)


@pytest.mark.parametrize("arch", [arch for arch in ARCHITECTURES if arch != "mixtral"])
def test_every_architecture_can_be_sketched(arch: str) -> None:
    planned = counted(ts.LoRA(), ts.SFT(), arch)
    counting, watch, _ = on_real_tensors(ts.LoRA(), ts.SFT(), arch)
    if is_replaceable(tiny_config(arch)):
        assert planned.work.flops == counting.work.flops
        assert planned.highest == pytest.approx(max(watch.found()), rel=0.01)
    else:  # an attention of its own, which keeps its scores where tensors have no values
        assert planned.highest == pytest.approx(max(watch.found()), rel=0.5)
        assert planned.highest > 0.99 * max(watch.found())


def test_experts_are_sketched_in_bfloat16_alone() -> None:
    places = Places(outlined("mixtral"), torch.bfloat16, CPU)
    template = default_template(tiny_tokenizer())
    batch = load_for(ts.SFT(), template).largest
    assert places.training(ts.LoRA(), ts.SFT(), template, batch).highest > 0
    with pytest.raises(TunescopeError, match="--dtype bfloat16"):
        counted(ts.LoRA(), ts.SFT(), "mixtral")


@pytest.mark.parametrize("objective", [ts.SFT(), ts.DPO()], ids=lambda each: each.name)
@pytest.mark.parametrize("method", TRAINING)
def test_a_deep_model_is_known_from_a_shallow_one(method: str, objective: Objective) -> None:
    made = METHODS.load(method)()
    template = made.prompt(default_template(tiny_tokenizer()), (), None, 0)
    batch = load_for(objective, template).largest
    deep = Places(outlined(layers=9), torch.float32, CPU)
    further = deep.training(made, objective, template, batch)
    whole = deep.at_depth(9, made, objective, template, batch)
    assert further.trained == whole.trained
    assert further.work.flops == pytest.approx(whole.work.flops)
    assert further.highest == pytest.approx(whole.highest, rel=0.01)


def test_layers_that_alternate_are_sketched_by_periods() -> None:
    config = copy.deepcopy(tiny_config("gemma3_text"))
    config.num_hidden_layers, config.layer_types = 12, (["sliding_attention"] * 5 + ["full_attention"]) * 2
    found = Outline("tiny", config, tiny_tokenizer())
    assert (found.layers, found.period) == (12, 6)
    places = Places(found, torch.float32, CPU)
    template = default_template(tiny_tokenizer())
    batch = load_for(ts.SFT(), template).largest
    further = places.training(ts.LoRA(), ts.SFT(), template, batch)
    whole = places.at_depth(12, ts.LoRA(), ts.SFT(), template, batch)
    assert further.highest == pytest.approx(whole.highest, rel=0.01)
