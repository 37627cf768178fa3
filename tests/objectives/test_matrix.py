"""Every method under every objective: it learns, what should move moves, an interrupted run goes on unbroken, and what
was trained is served. A new objective is a line in ``OBJECTIVES``, a new method a line in ``METHODS``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.objectives.pairs import PAIRS, RANKINGS, RATED
from tests.tiny import tiny_base

from tunescope import bank
from tunescope.base.fingerprint import hash_weights
from tunescope.data.encoding import Encoder
from tunescope.data.rows import Row
from tunescope.errors import BankError, DataError, TrainingError
from tunescope.inference import Item, reward_scores, score
from tunescope.inference.rewards import outputs_that_fit
from tunescope.methods import IA3, Adapter, Customized, Full, LoRA, Method, PromptTuning, PTuning, ZeroShot, compose
from tunescope.objectives import DPO, SFT, Attributes, Objective, Reward, reference
from tunescope.training import StepMetrics, TrainSettings, train
from tunescope.training.optimizer import trained_parameters
from tunescope.training.run import Trained

METHODS: dict[str, Method] = {
    "prompt-tuning": PromptTuning(virtual_tokens=4),
    "p-tuning": PTuning(virtual_tokens=4),
    "ia3": IA3(),
    "adapter": Adapter(bottleneck=4),
    "lora": LoRA(rank=2),
    "prompt-tuning+lora": compose(PromptTuning(virtual_tokens=3), LoRA(rank=2)),
    "full": Full(),
}
OBJECTIVES: dict[str, Objective] = {
    "sft": SFT(),
    "sft steered": SFT(steer_columns=("mood", "length")),
    "attributes": Attributes(columns=("mood", "length")),
    "dpo": DPO(beta=0.5),
    "dpo on rankings": DPO(beta=0.5),
    "reward": Reward(),
    "reward on rankings": Reward(loss="plackett-luce"),
}
LOSSES: dict[str, Objective] = {
    **{name: DPO(loss=name) for name in ("ipo", "hinge", "robust", "rpo", "simpo", "orpo")},
    "cdpo": DPO(label_smoothing=0.1),
    "nll": DPO(nll_weight=0.5),
    "normalized": DPO(length_normalize=True, beta=1),
    "margin": Reward(loss="margin"),
    "scaled": Reward(loss="scaled", centering=0.01),
}
REPORTED = {f"rewards/{name}" for name in ("chosen", "rejected", "margin", "accuracy")} | {
    "lengths/chosen",
    "lengths/rejected",
}


class Stopped(Exception):
    """Stands for whatever ends a run in the middle."""


@pytest.fixture(autouse=True)
def _own_cache(empty_cache: Path) -> None:
    """References are kept for the test alone."""


def run(method: Method, objective: Objective, goal: str = "", **more: Any) -> Trained:
    """Ten steps on separable pairs, on rankings where the goal names them, or on the pairs' chosen completions."""
    data: Any = [Row(p.messages, p.chosen, p.number) for p in PAIRS] if isinstance(objective, SFT) else PAIRS
    data = RANKINGS if goal.endswith("rankings") else data
    data = RATED if goal in ("sft steered", "attributes") else data
    settings = TrainSettings(max_steps=10, batch_size=4, lr=10 * method.learning_rate, checkpoint_every=2)
    return train(tiny_base(), method, objective, data, **{"settings": settings, **more})


def served(customized: Customized, objective: Objective) -> Any:
    """What a customization gives to the first prompts: rewards, or log-probabilities of completions."""
    if isinstance(objective, Reward):
        return reward_scores(customized, [p.messages for p in PAIRS], [p.chosen for p in PAIRS])
    if isinstance(objective, Attributes):
        return outputs_that_fit(customized, RATED, "attributes")
    encoder = Encoder(customized.base.tokenizer, customized.template, customized.base.context_length)
    return score(customized, [Item(encoder.prompt(p.messages).ids, [[1, 2, 3], [4]]) for p in PAIRS[:3]])


@pytest.mark.parametrize("goal", OBJECTIVES)
@pytest.mark.parametrize("name", METHODS)
def test_every_cell(name: str, goal: str, tmp_path: Path) -> None:
    base, method, objective = tiny_base(), METHODS[name], OBJECTIVES[goal]
    before = hash_weights(base.model)
    whole = run(method, objective, goal, out=tmp_path / "whole")
    losses = whole.result.losses
    assert sum(losses[-4:]) < 0.97 * sum(losses[:4])
    if goal.endswith("rankings"):
        assert whole.result.measured["rewards/accuracy"][-1] > 0.6
    elif goal in ("dpo", "reward"):
        assert whole.result.measured["rewards/accuracy"][-1] == 1
        assert losses[0] == pytest.approx(0.6931, abs=1e-3 if goal == "reward" or method.trains == "base" else 9)

    def stop(metrics: StepMetrics) -> None:
        if metrics.step == 5:
            raise Stopped

    with pytest.raises(Stopped):
        run(method, objective, goal, out=tmp_path / "again", on_step=stop)
    again = run(method, objective, goal, out=tmp_path / "again")
    assert again.result.losses == losses
    assert again.result.measured == whole.result.measured
    assert (tmp_path / "again" / "metrics.jsonl").read_text().count("\n") == 10

    loaded = bank.load(tmp_path / "again", base)
    assert loaded.trainable_parameters == whole.customized.trainable_parameters
    assert served(loaded, objective) == served(whole.customized, objective)
    bank.verify(tmp_path / "again", base)
    assert hash_weights(base.model) == before


@pytest.mark.parametrize("goal", OBJECTIVES)
@pytest.mark.parametrize("name", METHODS)
def test_what_is_trained_moves(name: str, goal: str) -> None:
    method, objective = METHODS[name], OBJECTIVES[goal]
    start: dict[str, torch.Tensor] = {}
    customized: list[Customized] = []
    original = objective.__class__.prepare

    def look(self: Objective, made: Customized, examples: Any) -> Any:
        customized.append(made)
        start.update({key: value.detach().clone() for key, value in trained_parameters(made).items()})
        return original(self, made, examples)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(objective.__class__, "prepare", look)
        finished = run(method, objective, goal).customized
    now = {**dict(finished.base.model.named_parameters()), **dict(finished.customization.named_parameters())}
    moved = {key for key, value in start.items() if key in now and not torch.equal(now[key], value)}
    kept = {key for key in start if key in now} - moved
    # Positions and tokens that no text has get no gradient; p-tuning's encoder is dropped when training ends.
    assert not kept, kept
    assert ("head_reward.weight" in moved) == isinstance(objective, Reward)
    assert ({"head_attributes.weight", "head_attributes.bias"} <= moved) == isinstance(objective, Attributes)
    assert any("head_" not in key for key in moved) or name == "p-tuning"


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_learns_and_reports(name: str) -> None:
    trained = run(LoRA(rank=4), LOSSES[name])
    result = trained.result
    assert sum(result.losses[-3:]) < sum(result.losses[:3])
    assert result.measured["rewards/margin"][-1] > result.measured["rewards/margin"][0]
    summary = trained.summary()
    assert summary.keys() >= {*REPORTED, "pairs_per_s", "rows_per_s", "prepare_seconds"}
    assert ("kl" in summary) == (isinstance(LOSSES[name], DPO) and name not in ("simpo", "orpo"))
    assert summary["lengths/chosen"] == pytest.approx(sum(result.measured["lengths/chosen"][-1:]), abs=1e-4)


def test_the_step_is_the_same_however_it_is_cut() -> None:
    for objective in (DPO(), Reward(centering=0.1)):
        cut = TrainSettings(max_steps=4, batch_size=6, lr=1e-2, accumulate=4)
        whole = run(LoRA(), objective, settings=cut.model_copy(update={"accumulate": 1})).result
        parts = run(LoRA(), objective, settings=cut).result
        assert parts.losses == pytest.approx(whole.losses, abs=2e-4)
        assert parts.measured["rewards/margin"] == pytest.approx(whole.measured["rewards/margin"], abs=2e-3)


def test_the_reference_is_computed_once_and_never_in_the_loop(
    monkeypatch: pytest.MonkeyPatch, empty_cache: Path
) -> None:
    base, passes = tiny_base(), []
    handle = base.embedding.register_forward_pre_hook(lambda _m, args: passes.append(args[0].shape[0]))
    try:
        first = run(LoRA(), DPO()).result
        assert sum(passes) == len(PAIRS) + 10 * 4  # every pair once under the reference, then ten steps of four
        assert len(list((empty_cache / "references").iterdir())) == 1
        passes.clear()
        assert run(LoRA(), DPO(loss="hinge")).result.losses
        assert sum(passes) == 10 * 4
        monkeypatch.setattr(reference, "_computed", lambda *_: pytest.fail("computed again"))
        assert run(LoRA(), DPO()).result.losses == first.losses
        assert run(LoRA(), DPO(loss="simpo")).result.losses  # needs none
    finally:
        handle.remove()


def test_a_damaged_or_foreign_reference_is_computed_again(empty_cache: Path) -> None:
    first = run(LoRA(), DPO()).result.losses
    (kept,) = (empty_cache / "references").iterdir()
    whole = kept.read_bytes()
    for damaged in (whole[:-9], whole[:-3] + bytes([whole[-3] ^ 64]) + whole[-2:]):
        kept.write_bytes(damaged)
        assert run(LoRA(), DPO()).result.losses == first
        assert kept.read_bytes() == whole
    run(PromptTuning(virtual_tokens=2), DPO())  # the same texts: virtual tokens are no part of the reference
    assert len(list((empty_cache / "references").iterdir())) == 1
    train(tiny_base(dtype=torch.bfloat16), LoRA(), DPO(), PAIRS, settings=TrainSettings(max_steps=1))
    train(tiny_base(), LoRA(), DPO(), PAIRS[:-1], settings=TrainSettings(max_steps=1))
    assert len(list((empty_cache / "references").iterdir())) == 3


def test_rewards_begin_equal_and_the_head_has_a_rate_of_its_own() -> None:
    first = run(LoRA(), Reward(), settings=TrainSettings(max_steps=1)).result
    assert first.losses == [pytest.approx(0.693147, abs=1e-5)]
    full = run(Full(), Reward(), settings=TrainSettings(max_steps=1, warmup=0.0))
    weight = full.customized.customization.effects["head.reward"].weight
    assert weight.abs().max().item() == pytest.approx(1e-3, rel=0.01)  # one step of Adam


def test_a_reward_model_keeps_its_head_or_is_refused(tmp_path: Path) -> None:
    base = tiny_base()
    for method in (LoRA(), Full()):
        folder = tmp_path / method.name
        run(method, Reward(), out=folder)
        assert (folder / "customization.safetensors").is_file()
        loaded = bank.load(folder, base)
        with pytest.raises(BankError, match="reward head"):
            bank.export_peft(loaded, tmp_path / "peft")
        with pytest.raises(BankError, match="reward head"):
            bank.merge_into_base(loaded, tmp_path / "merged")
        (folder / "customization.safetensors").write_bytes(b"something else")
        with pytest.raises(BankError, match="not what was saved"):
            bank.load(folder, base)
    with pytest.raises(BankError, match="reward head"):
        bank.merge([run(LoRA(), Reward()).customized, run(LoRA(), Reward()).customized])


def test_a_reward_model_of_another_base_is_refused(tmp_path: Path) -> None:
    run(LoRA(), Reward(), out=tmp_path / "judge")
    with pytest.raises(BankError, match="was made for tiny-llama"):
        bank.load(tmp_path / "judge", tiny_base("qwen2"))


def test_rewards_do_not_depend_on_company() -> None:
    customized = run(LoRA(), Reward()).customized
    prompts = ["a", "a much longer prompt than the first", [{"role": "user", "content": "hm"}]]
    together = reward_scores(customized, prompts, ["yes", "no no no", "yes!!"])
    alone = [reward_scores(customized, [p], [c])[0] for p, c in zip(prompts, ["yes", "no no no", "yes!!"], strict=True)]
    assert together == pytest.approx(alone, abs=1e-4)
    assert together[0] > together[1]


def test_what_cannot_be_scored_is_named() -> None:
    with pytest.raises(DataError, match="--objective reward"):
        reward_scores(run(LoRA(), SFT()).customized, ["a"], ["b"])
    with pytest.raises(DataError, match="Text 2"):
        reward_scores(run(LoRA(), Reward()).customized, ["a", "a"], ["b", "b" * 600])


def test_methods_that_train_nothing_and_missing_margins_are_refused() -> None:
    with pytest.raises(TrainingError, match="zero-shot trains nothing, so it cannot be trained for dpo"):
        train(tiny_base(), ZeroShot(), DPO(), PAIRS)
    bare = [*PAIRS[:3], type(PAIRS[0])(PAIRS[0].messages, "a", "b", 77)]
    for objective in (DPO(loss="rpo"), Reward(loss="margin"), Reward(loss="scaled")):
        with pytest.raises(DataError, match=r"line 77 has none.*reward_chosen"):
            train(tiny_base(), LoRA(), objective, bare)


def test_notes_say_what_was_cut_repeated_and_unused() -> None:
    long = type(PAIRS[0])(({"role": "user", "content": "x" * 600},), "yes", "no", 50)
    huge = type(PAIRS[0])(({"role": "user", "content": "x"},), "y" * 600, "no", 51)
    notes = " ".join(
        train(tiny_base(), LoRA(), DPO(), [*PAIRS, PAIRS[0], long, huge], settings=TrainSettings(max_steps=1)).notes
    )
    assert "1 prompt was cut to fit 512 tokens (the start of the text)" in notes
    assert "1 row was dropped" in notes and "line 51" in notes
    assert "margins, which --loss sigmoid does not use" in notes
    assert "repeats" not in notes  # the same pair under the same number is one row given twice
