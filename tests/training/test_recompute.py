"""Layers that are computed again: the same numbers in less memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.planning.test_passes import CPU, load_for, outlined
from tests.tiny import ARCHITECTURES, tiny_base, tiny_tokenizer
from tests.training.test_learners import SETUPS, Setup, learner, made

import tunescope as ts
from tunescope.data.template import default_template
from tunescope.errors import TrainingError
from tunescope.methods.registry import METHODS
from tunescope.planning.passes import Places
from tunescope.training import Learner, TrainSettings, recompute
from tunescope.training.loop import train_loop

FULL = Setup(ts.Full(), ts.SFT(), {"max_steps": 3, "batch_size": 4, "lr": 1e-3})


def ended(one: Learner) -> tuple[list[float], dict[str, torch.Tensor]]:
    train_loop([one])
    assert one.error is None
    moved = one.base.model.state_dict() if one.customized.moves_base else {}
    return one.result.losses, {**one.customized.customization.tensors(), **moved}


def assert_same(one: Learner, again: Learner) -> None:
    (losses, tensors), (other_losses, others) = ended(one), ended(again)
    assert losses == other_losses
    assert all(torch.equal(tensors[name], others[name]) for name in tensors)


@pytest.mark.parametrize("name", SETUPS)
def test_every_method_ends_the_same_bit_for_bit(name: str, tmp_path: Path) -> None:
    base = tiny_base()
    assert_same(learner(base, name, tmp_path / "kept"), learner(base, name, tmp_path / "again", recompute=True))


def test_moved_weights_end_the_same_bit_for_bit(tmp_path: Path) -> None:
    base = tiny_base()
    one, again = (
        made(base, FULL.method, FULL.objective, tmp_path / str(flag), {**FULL.settings, "recompute": flag})
        for flag in (False, True)
    )
    assert_same(one, again)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_architecture_can(arch: str, tmp_path: Path) -> None:
    base = tiny_base(arch)
    assert_same(learner(base, "lora", tmp_path / "kept"), learner(base, "lora", tmp_path / "again", recompute=True))


def test_learners_that_share_a_pass_end_as_alone(tmp_path: Path) -> None:
    base = tiny_base()
    both = [learner(base, "lora", tmp_path / "a", recompute=True), learner(base, "reward", tmp_path / "b")]
    train_loop(both)
    for one, name in zip(both, ("lora", "reward"), strict=True):
        losses, _ = ended(learner(base, name, tmp_path / f"{name}-alone"))
        assert one.result.losses == pytest.approx(losses, abs=1e-5)


def test_between_steps_the_base_keeps_what_an_engine_needs(tmp_path: Path) -> None:
    base = tiny_base()

    def answer() -> list[int]:
        asked = ts.Request("one two", sampling=ts.Sampling(max_new_tokens=8))
        return list(ts.Engine(base).generate([asked])[0].tokens)

    expected, answers = answer(), []
    train_loop([learner(base, "lora", tmp_path / "x", recompute=True)], on_step=lambda *_: answers.append(answer()))
    assert answers and all(found == expected for found in answers)
    assert not any("forward" in vars(module) for module in base.model.modules())


@pytest.mark.parametrize("method", ["lora", "full"])
def test_it_takes_less_memory_and_the_plan_says_so(method: str) -> None:
    made_method = METHODS.load(method)()
    template = made_method.prompt(default_template(tiny_tokenizer()), (), None, 0)
    batch = load_for(ts.SFT(), template).largest
    kept, again = (
        Places(outlined(layers=12), torch.float32, CPU, flag).training(made_method, ts.SFT(), template, batch)
        for flag in (False, True)
    )
    whole = Places(outlined(layers=12), torch.float32, CPU, True).at_depth(12, made_method, ts.SFT(), template, batch)
    assert again.highest == pytest.approx(whole.highest, rel=0.02)
    assert again.highest - again.gradients < 0.5 * (kept.highest - kept.gradients)
    assert 1.1 * kept.work.flops < again.work.flops < 1.6 * kept.work.flops


def test_layers_that_cannot_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(recompute, "GradientCheckpointingLayer", TrainSettings)
    one = learner(tiny_base(), "lora", tmp_path / "x", recompute=True)
    with pytest.raises(TrainingError, match="--accumulate"):
        train_loop([one])
