"""Training that starts from an entry: on top of it, or with its own tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.objectives.pairs import PAIRS
from tests.tiny import tiny_base

from tunescope import bank
from tunescope.base import load_base
from tunescope.data.encoding import Encoder
from tunescope.data.rows import Row
from tunescope.errors import BankError, TrainingError
from tunescope.inference import Item, reward_scores, score
from tunescope.methods import (
    IA3,
    Adapter,
    Customized,
    FewShot,
    Full,
    LoRA,
    Method,
    PromptTuning,
    PTuning,
    ZeroShot,
    compose,
)
from tunescope.objectives import DPO, SFT, Objective, Reward
from tunescope.objectives.reference import with_reference
from tunescope.training import StepMetrics, TrainSettings, train
from tunescope.training.run import Trained

METHODS: dict[str, Method] = {
    "prompt-tuning": PromptTuning(virtual_tokens=3, initialize="labels"),
    "p-tuning": PTuning(virtual_tokens=2),
    "ia3": IA3(),
    "adapter": Adapter(bottleneck=4),
    "lora": LoRA(rank=2, dropout=0.1),
    "dora": LoRA(rank=2, dora=True),
    "prompt-tuning+lora": compose(PromptTuning(virtual_tokens=2), LoRA(rank=2)),
}
OBJECTIVES: dict[str, Objective] = {"sft": SFT(), "dpo": DPO(beta=0.5), "reward": Reward()}
ROWS = [Row(p.messages, p.chosen.rstrip("!"), p.number) for p in PAIRS]


class Stopped(Exception):
    """Stands for whatever ends a run in the middle."""


@pytest.fixture(autouse=True)
def _own_cache(empty_cache: Path) -> None:
    """References are kept for the test alone."""


def run(method: Method, objective: Objective, steps: int = 3, **more: Any) -> Trained:
    data: Any = ROWS if isinstance(objective, SFT) else PAIRS
    settings = TrainSettings(max_steps=steps, batch_size=4, lr=3 * method.learning_rate or None, checkpoint_every=1)
    return train(tiny_base(), method, objective, data, **{"settings": settings, **more})


@pytest.fixture(scope="module")
def entries(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An entry of each method, trained by SFT on a classification task."""
    folder = tmp_path_factory.mktemp("bank")
    for name, method in METHODS.items():
        train(
            tiny_base(), method, SFT(), ROWS, settings=TrainSettings(max_steps=2, batch_size=4, lr=0.05),
            out=folder / name, labels=("yes", "no"),
        )  # fmt: skip
    return {name: folder / name for name in METHODS}


def scores(customized: Customized) -> Any:
    encoder = Encoder(customized.base.tokenizer, customized.template, customized.base.context_length)
    return score(customized, [Item(encoder.prompt(p.messages).ids, [[1, 2, 3], [4]]) for p in PAIRS[:3]])


def check_unbroken(method: Method, objective: Objective, folder: Path, **more: Any) -> Trained:
    """It trains, a killed run goes on unbroken, and what was saved is what was trained."""
    whole = run(method, objective, out=folder / "whole", **more)

    def stop(metrics: StepMetrics) -> None:
        if metrics.step == 2:
            raise Stopped

    with pytest.raises(Stopped):
        run(method, objective, out=folder / "again", on_step=stop, **more)
    again = run(method, objective, out=folder / "again", **more)
    assert again.result.losses == whole.result.losses
    loaded = bank.load(folder / "again", tiny_base())
    assert loaded.trainable_parameters == whole.customized.trainable_parameters
    assert scores(loaded) == scores(whole.customized)
    if isinstance(objective, Reward):
        texts = [p.messages for p in PAIRS], [p.chosen for p in PAIRS]
        assert reward_scores(loaded, *texts) == reward_scores(whole.customized, *texts)
    bank.verify(folder / "again", tiny_base())
    return whole


@pytest.mark.parametrize("goal", OBJECTIVES)
@pytest.mark.parametrize(("below", "above"), list(zip(METHODS, [*list(METHODS)[3:], *list(METHODS)[:3]], strict=True)))
def test_on_top(below: str, above: str, goal: str, entries: dict[str, Path], tmp_path: Path) -> None:
    before = bank.load(entries[below], tiny_base())
    made = check_unbroken(METHODS[above], OBJECTIVES[goal], tmp_path, start=entries[below], labels=("yes", "no"))
    start = made.customized.customization.start
    assert start is not None and made.record.start is not None and made.record.start.method == METHODS[below].name
    found, expected = start.tensors(), before.customization.tensors()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert scores(made.customized) != scores(before)
    if goal == "dpo" and "tuning" not in above:
        assert made.result.measured["kl"][0] == pytest.approx(0, abs=1e-4)
        assert made.result.losses[0] == pytest.approx(0.6931, abs=1e-3 if METHODS[above] != METHODS["lora"] else 0.01)


@pytest.mark.parametrize("goal", OBJECTIVES)
@pytest.mark.parametrize("name", METHODS)
def test_its_own_tensors(name: str, goal: str, entries: dict[str, Path], tmp_path: Path) -> None:
    before = bank.load(entries[name], tiny_base())
    made = check_unbroken(type(METHODS[name])(), OBJECTIVES[goal], tmp_path, continued=entries[name])
    assert made.customized.method == METHODS[name]
    assert made.record.continued is not None and made.record.continued.name == str(entries[name])
    reference = made.customized.reference
    assert reference is not None
    for tensor_name, tensor in reference.tensors().items():
        assert torch.equal(tensor, before.customization.tensors()[tensor_name])
        assert not torch.equal(tensor, made.customized.customization.tensors()[tensor_name])
    if goal == "dpo":
        assert made.result.measured["kl"][0] == pytest.approx(0, abs=1e-4 if name != "lora" else 0.1)


def test_the_reference_is_the_entry(entries: dict[str, Path]) -> None:
    """Against one completion at a time, without padding, packing or cache."""
    from tests.objectives.pairs import encoded_pairs

    entry = bank.load(entries["prompt-tuning+lora"], tiny_base())
    examples = encoded_pairs(3, virtual=4)  # two of them are the entry's own
    for example in with_reference(entry.origin, examples, entry.customization):
        prompt = [token for token in example.prompt if token >= -2]
        for completion, found in zip((example.chosen, example.rejected), example.reference, strict=True):
            with torch.no_grad(), entry.active() as base:
                ids = torch.tensor([prompt + completion])
                logprobs = base.forward(ids, torch.ones_like(ids))[0].log_softmax(-1)
            expected = sum(logprobs[len(prompt) - 1 + i, token].item() for i, token in enumerate(completion))
            assert found == pytest.approx(expected, abs=1e-3)
    others = [example.reference for example in with_reference(entry.origin, examples)]
    assert others != [example.reference for example in with_reference(entry.origin, examples, entry.customization)]


def test_a_longer_chain_and_prompts(entries: dict[str, Path], tmp_path: Path) -> None:
    run(LoRA(rank=2), DPO(), start=entries["adapter"], out=tmp_path / "second")
    third = run(FewShot(shots=1), SFT(), start=tmp_path / "second", out=tmp_path / "third")
    assert third.customized.template.shots and scores(bank.load(tmp_path / "third", tiny_base())) == scores(
        third.customized
    )
    fourth = run(IA3(), SFT(), start=tmp_path / "third", out=tmp_path / "fourth")
    assert fourth.customized.template.shots == third.customized.template.shots
    chain = [fourth.record]
    while chain[-1].start is not None:
        chain.append(chain[-1].start)
    assert [record.method for record in chain] == ["ia3", "few-shot", "lora", "adapter"]
    bank.verify(tmp_path / "fourth", tiny_base())
    run(IA3(), DPO(), continued=tmp_path / "fourth", out=tmp_path / "fifth")
    assert bank.read_record(tmp_path / "fifth").start == fourth.record.start
    bank.verify(tmp_path / "fifth", tiny_base())


def test_what_training_returned_is_a_start(tmp_path: Path) -> None:
    first = run(LoRA(rank=2), Reward())
    made = run(Adapter(bottleneck=2), DPO(), start=first, out=tmp_path / "made")
    assert made.record.start is not None and made.record.start.tensors_sha256
    assert scores(bank.load(tmp_path / "made", tiny_base())) == scores(made.customized)
    assert not made.customized.customization.heads and list(first.customized.customization.heads) == ["reward"]
    again = run(LoRA(), SFT(), continued=first, out=tmp_path / "again")
    assert not again.customized.customization.heads
    bank.verify(tmp_path / "again", tiny_base())


def test_a_full_entry_is_the_base(tmp_path: Path) -> None:
    full = run(Full(), SFT(), out=tmp_path / "full")
    made = run(LoRA(rank=2), DPO(), start=tmp_path / "full", out=tmp_path / "made")
    assert made.result.measured["kl"][0] == pytest.approx(0, abs=1e-4)
    assert made.record.base.name == str(tmp_path / "full") and made.record.start is not None
    assert made.record.start.base.fingerprint == full.record.base.fingerprint != made.record.base.fingerprint
    base = load_base(str(tmp_path / "full"), dtype="float32")  # whatever this machine is fast at
    assert scores(bank.load(tmp_path / "made", base)) == scores(made.customized)
    further = run(Full(), DPO(), start=tmp_path / "full")
    assert further.result.measured["kl"][0] == pytest.approx(0, abs=1e-4)


def test_another_start_is_noticed(entries: dict[str, Path], tmp_path: Path) -> None:
    def stop(metrics: StepMetrics) -> None:
        if metrics.step == 2:
            raise Stopped

    with pytest.raises(Stopped):
        run(IA3(), SFT(), start=entries["lora"], out=tmp_path / "made", on_step=stop)
    with pytest.raises(TrainingError, match=r"had other settings \(start\)"):
        run(IA3(), SFT(), start=entries["adapter"], out=tmp_path / "made")


def test_what_cannot_be_started_from_says_why(entries: dict[str, Path], tmp_path: Path) -> None:
    lora, zero = entries["lora"], tmp_path / "zero"
    run(ZeroShot(), SFT(), out=zero)
    refused: list[tuple[Method, dict[str, Any], type[Exception], str]] = [
        (LoRA(), {"start": lora, "continued": lora}, TrainingError, "--from trains something new"),
        (ZeroShot(), {"continued": zero}, TrainingError, "nothing to train on"),
        (IA3(), {"continued": lora}, TrainingError, "trains lora and not ia3"),
        (LoRA(rank=4), {"continued": lora}, TrainingError, "--rank is 4, but .* has 2"),
        (LoRA(), {"start": lora.with_name("lorra")}, BankError, "lora"),
        (Full(), {"start": lora}, TrainingError, "--to transformers"),
        (LoRA(), {"start": lora, "style": "plain"}, TrainingError, "--style"),
        (LoRA(), {"start": run(Full(), SFT(), 1)}, TrainingError, "save it with --out"),
    ]
    for method, given, kind, said in refused:
        with pytest.raises(kind, match=said):
            run(method, SFT(), **given)
    other = tiny_base("gpt2")
    with pytest.raises(BankError, match="was made for"):
        train(other, LoRA(), SFT(), ROWS, start=lora)
    with pytest.raises(TrainingError, match="another base"):
        train(other, LoRA(), SFT(), ROWS, start=run(LoRA(), SFT(), 1))
