"""Learners that share passes of one base: each computes what it computes alone, and fails alone."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from tests.objectives.pairs import PAIRS
from tests.tiny import tiny_base

from tunescope.base import Base
from tunescope.data.encoding import Encoded, Encoder
from tunescope.data.rows import Row
from tunescope.data.template import default_template
from tunescope.errors import Interrupted, TrainingError
from tunescope.methods import IA3, Adapter, Customized, Full, LoRA, Method, PromptTuning, PTuning, compose, customize
from tunescope.objectives import DPO, SFT, Objective, Reward, Services
from tunescope.training import Learner, StepMetrics, TrainSettings, train
from tunescope.training.loop import train_loop

ROWS = [
    Row(({"role": "user", "content": f"word {i} " + "x" * (i % 7)},), ("yes", "no")[i % 2], i + 1) for i in range(24)
]


@dataclass(frozen=True)
class Setup:
    """One learner: all of them differ in rank, length, clip, rate, order and end."""

    method: Method
    objective: Objective
    settings: dict[str, Any]


SETUPS: dict[str, Setup] = {
    "lora": Setup(LoRA(rank=2, dropout=0.1), SFT(), {"max_steps": 5, "batch_size": 4, "lr": 1e-3}),
    "lora-wide": Setup(
        LoRA(rank=5, targets=("all-linear",)), SFT(), {"max_steps": 7, "batch_size": 3, "max_grad_norm": 0.1, "seed": 1}
    ),
    "dora": Setup(LoRA(rank=3, dora=True), SFT(), {"max_steps": 4, "batch_size": 2, "weight_decay": 0.1}),
    "ia3": Setup(IA3(), SFT(), {"max_steps": 6, "batch_size": 5, "accumulate": 2, "seed": 2}),
    "adapter": Setup(Adapter(bottleneck=4), SFT(), {"max_steps": 3, "batch_size": 4}),
    "prompt-tuning": Setup(PromptTuning(virtual_tokens=5), SFT(), {"max_steps": 6, "batch_size": 4}),
    "p-tuning": Setup(PTuning(virtual_tokens=3), SFT(), {"max_steps": 4, "batch_size": 4}),
    "both": Setup(compose(PromptTuning(virtual_tokens=4), LoRA(rank=2)), SFT(), {"max_steps": 5, "batch_size": 6}),
    "dpo": Setup(LoRA(rank=2), DPO(), {"max_steps": 4, "batch_size": 2, "lr": 1e-3}),
    "reward": Setup(LoRA(rank=4, dropout=0.2), Reward(), {"max_steps": 5, "batch_size": 3, "lr": 1e-3}),
}  # fmt: skip


def learner(base: Base, name: str, folder: Path, **changes: Any) -> Learner:
    setup = SETUPS[name]
    return made(base, setup.method, setup.objective, folder, {"lr": 3e-4, **setup.settings, **changes})


def made(base: Base, method: Method, objective: Objective, folder: Path, settings: Mapping[str, Any]) -> Learner:
    rows: Sequence[Any] = ROWS if objective.takes is Row else PAIRS
    chosen = TrainSettings(**settings)
    added = objective.effects(base, torch.Generator().manual_seed(chosen.seed))
    customized = customize(base, method, default_template(base.tokenizer), rows, None, chosen.seed, added)
    encoder = Encoder(base.tokenizer, customized.template, base.context_length, None, objective.cut)
    folder.mkdir(parents=True, exist_ok=True)
    return Learner(customized, objective, objective.examples(rows, encoder), chosen, folder)


def assert_same(found: Learner, expected: Learner) -> None:
    assert found.error is None and found.step == expected.step == found.steps
    assert found.result.losses == pytest.approx(expected.result.losses, abs=1e-5)
    tensors = expected.customized.customization.tensors()
    for name, tensor in found.customized.customization.tensors().items():
        torch.testing.assert_close(tensor, tensors[name], atol=1e-5, rtol=1e-4, msg=lambda said, n=name: f"{n}: {said}")


def alone(base: Base, name: str, folder: Path, **changes: Any) -> Learner:
    one = learner(base, name, folder / f"{name}-alone", **changes)
    train_loop([one])
    return one


@pytest.mark.parametrize("arch", ["llama", "gpt2", "opt", "phi3", "gemma2"])
def test_each_is_as_trained_alone(arch: str, tmp_path: Path) -> None:
    base = tiny_base(arch)
    several = {name: learner(base, name, tmp_path / name) for name in SETUPS}
    train_loop(list(several.values()))
    for name, one in several.items():
        assert_same(one, alone(base, name, tmp_path))


def test_learners_of_one_length_share_passes(tmp_path: Path) -> None:
    base, passes = tiny_base(), []
    handle = base.embedding.register_forward_hook(lambda *_: passes.append(1))
    several = [learner(base, "lora", tmp_path / str(seed), max_steps=3, lr=10**-seed) for seed in (2, 3, 4)]
    try:
        train_loop(several)
    finally:
        handle.remove()
    assert len(passes) == 3  # one a step, not one a step and learner


@pytest.mark.parametrize("killed_after", [1, 3])
def test_killed_and_begun_again_they_end_the_same(killed_after: int, tmp_path: Path) -> None:
    names, base = ("lora", "prompt-tuning", "dpo", "reward"), tiny_base()

    def kill(one: Learner, metrics: StepMetrics) -> None:
        if metrics.step == killed_after and one.objective.name == "reward":
            os.kill(os.getpid(), signal.SIGKILL)

    if (child := os.fork()) == 0:
        torch.set_num_threads(1)
        train_loop([learner(base, name, tmp_path / name, checkpoint_every=1) for name in names], on_step=kill)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    several = {name: learner(base, name, tmp_path / name, checkpoint_every=1) for name in names}
    assert all(one.step > 0 for one in several.values())
    train_loop(list(several.values()))
    for name, one in several.items():
        assert_same(one, alone(base, name, tmp_path))


def test_what_is_not_finite_stops_one_alone(tmp_path: Path) -> None:
    base = tiny_base()
    bad, good = learner(base, "lora-wide", tmp_path / "bad"), learner(base, "lora", tmp_path / "good")

    def poison(one: Learner, metrics: StepMetrics) -> None:
        if one is bad and metrics.step == 2:
            with torch.no_grad():
                next(one.customized.customization.parameters()).fill_(math.nan)

    train_loop([bad, good], on_step=poison)
    assert bad.step == 2 and "loss is not finite at step 3" in str(bad.error)
    assert_same(good, alone(base, "lora", tmp_path))


def test_one_stops_early_and_the_others_go_on(tmp_path: Path) -> None:
    base = tiny_base()
    first, second = learner(base, "lora-wide", tmp_path / "a"), learner(base, "lora", tmp_path / "b")
    train_loop([first, second], on_step=lambda one, metrics: one is first and metrics.step == 2)
    assert first.step == 2 and first.result.summary()["stopped_early"] is True
    assert_same(second, alone(base, "lora", tmp_path))


def test_what_others_draw_changes_nothing(tmp_path: Path) -> None:
    """Dropout comes from the learner's own generator, in a moved base too."""

    def draw(*_: Any) -> None:
        torch.rand(3)

    base = tiny_base("gpt2")  # whose own dropout is 0.1
    for method in (LoRA(rank=2, dropout=0.3), Full()):
        runs = []
        for number, on_step in enumerate((lambda *_: None, draw)):
            torch.manual_seed(number)
            one = made(base, method, SFT(), tmp_path / f"{method.name}{number}", {"max_steps": 4, "lr": 1e-3})
            train_loop([one], on_step=on_step)
            runs.append(one.result.losses)
        assert runs[0] == runs[1]


def test_full_trains_alone(tmp_path: Path) -> None:
    base = tiny_base()
    several = [made(base, Full(), SFT(), tmp_path / "a", {"max_steps": 1}), learner(base, "lora", tmp_path / "b")]
    with pytest.raises(TrainingError, match="full moves the base's own weights, so it trains alone"):
        train_loop(several)


def test_learners_need_one_base(tmp_path: Path) -> None:
    several = [learner(tiny_base(arch), "lora", tmp_path / arch) for arch in ("llama", "gpt2")]
    with pytest.raises(TrainingError, match="need one base"):
        train_loop(several)


def test_ctrl_c_saves_all_of_them(tmp_path: Path) -> None:
    def interrupt(one: Learner, metrics: StepMetrics) -> None:
        if metrics.step == 2 and one.objective.name == "sft" and one.customized.method.name == "lora":
            os.kill(os.getpid(), signal.SIGINT)

    base, names = tiny_base(), ("lora", "adapter")
    with pytest.raises(Interrupted, match="step 2 of 5, step 2 of 3"):
        train_loop([learner(base, name, tmp_path / name) for name in names], on_step=interrupt)
    assert [learner(base, name, tmp_path / name).step for name in names] == [2, 2]


# Rounds.


class OwnSamples(SFT):
    """Learn what oneself writes: each round samples completions of the prompts anew."""

    name: ClassVar[str] = "own-samples"
    seen: ClassVar[list[tuple[int, list[Encoded]]]] = []

    @property
    def number_of_rounds(self) -> int:
        return 3

    def collect(
        self, number: int, customized: Customized, examples: Sequence[Any], services: Services
    ) -> list[Encoded]:
        prompts = [row.messages for row in ROWS[:6]]
        written = services.sample(customized, prompts, n=2, seed=number, max_new_tokens=4)
        found = [
            Encoded(example.prompt, list(each.tokens), example.number)
            for example, several in zip(examples, written, strict=False)
            for each in several
        ]
        self.seen.append((number, found))
        return found


def own_samples(folder: Path) -> Learner:
    settings = {"max_steps": 9, "batch_size": 4, "lr": 1e-2, "checkpoint_every": 1}
    return made(tiny_base(), LoRA(rank=2), OwnSamples(), folder, settings)


def test_each_round_learns_from_new_examples(tmp_path: Path) -> None:
    OwnSamples.seen.clear()
    one = own_samples(tmp_path / "a")
    train_loop([one])
    assert one.step == 9 and [number for number, _ in OwnSamples.seen] == [0, 1, 2]
    assert OwnSamples.seen[0][1] != OwnSamples.seen[1][1]


@pytest.mark.parametrize("killed_after", [1, 3, 5])
def test_a_round_goes_on_in_the_middle(killed_after: int, tmp_path: Path) -> None:
    def kill(_one: Learner, metrics: StepMetrics) -> None:
        if metrics.step == killed_after:
            os.kill(os.getpid(), signal.SIGKILL)

    if (child := os.fork()) == 0:
        torch.set_num_threads(1)
        train_loop([own_samples(tmp_path / "killed")], on_step=kill)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    whole, killed = own_samples(tmp_path / "whole"), own_samples(tmp_path / "killed")
    assert killed.step == killed_after
    OwnSamples.seen.clear()
    train_loop([killed])
    assert [number for number, _ in OwnSamples.seen] == [n for n in (0, 1, 2) if 3 * n >= killed_after and n]
    train_loop([whole])
    assert killed.result.losses == whole.result.losses


# Validation.


def test_validation_rows_are_measured_and_not_learned(tmp_path: Path) -> None:
    base, seen = tiny_base(), list[StepMetrics]()
    settings = TrainSettings(max_steps=4, batch_size=4, lr=1e-2, validate_every=2)
    on_step: Callable[[StepMetrics], object] = seen.append
    trained = train(base, LoRA(rank=2), data=ROWS[:16], settings=settings, validation=ROWS[16:], on_step=on_step)
    assert ["validation/loss" in metrics.measured for metrics in seen] == [False, True, False, True]
    without = train(base, LoRA(rank=2), data=ROWS[:16], settings=settings.model_copy(update={"validate_every": None}))
    assert trained.result.losses == without.result.losses
    total = count = 0.0
    encoder = Encoder(base.tokenizer, trained.customized.template, base.context_length)
    for row in ROWS[16:]:  # the slow obvious version: one row at a time, all logits
        example = encoder.encode(row)
        assert example is not None
        ids = torch.tensor([example.prompt + example.completion])
        with torch.no_grad(), trained.customized.active():
            logprobs = base.forward(ids, torch.ones_like(ids)).log_softmax(-1)
        for position in range(len(example.prompt), ids.shape[1]):
            total -= logprobs[0, position - 1, ids[0, position]].item()
            count += 1
    assert trained.result.summary()["validation_loss"] == pytest.approx(total / count, abs=1e-5)


def test_validation_that_has_no_rows_is_refused() -> None:
    with pytest.raises(TrainingError, match="--validate-every has nothing to measure"):
        train(tiny_base(), LoRA(), data=ROWS, settings=TrainSettings(validate_every=2))


def test_training_stops_where_on_step_says_so(tmp_path: Path) -> None:
    settings = TrainSettings(max_steps=9, batch_size=4)
    trained = train(
        tiny_base(), LoRA(), data=ROWS, settings=settings, out=tmp_path / "a", on_step=lambda metrics: metrics.step == 3
    )
    assert trained.result.steps == 3 and trained.record.training["stopped_early"] is True
