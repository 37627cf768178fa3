"""A CUDA device gives what the CPU gives: the same losses in training, the same answers in service.

Skipped where there is none. Everything else can be tested on one too: ``TUNESCOPE_TEST_DEVICE=cuda pytest tests``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.inference.mix import METHODS as CUSTOMIZATIONS
from tests.inference.mix import customized
from tests.objectives.pairs import PAIRS
from tests.tiny import tiny_base

from tunescope import bank
from tunescope.data.rows import Row
from tunescope.inference import Engine, Request, Sampling
from tunescope.methods import IA3, Adapter, Full, LoRA, Method, PromptTuning, PTuning, compose
from tunescope.objectives import DPO, GRPO, PPO, RLOO, SFT, Objective, PolicyObjective, Reward
from tunescope.training import StepMetrics, TrainSettings, train
from tunescope.training.run import Trained

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
ROUNDS: dict[str, Any] = {
    "reward": "tests.training.judges_of_tests:early", "rounds": 2, "prompts": 4, "n": 3, "max_new_tokens": 4,
    "missing_stop": "keep",
}  # fmt: skip
METHODS: dict[str, Method] = {
    "prompt-tuning": PromptTuning(virtual_tokens=4),
    "p-tuning": PTuning(virtual_tokens=4),
    "ia3": IA3(),
    "adapter": Adapter(bottleneck=4),
    "lora": LoRA(rank=2),
    "dora": LoRA(rank=2, dora=True),
    "prompt-tuning+lora": compose(PromptTuning(virtual_tokens=3), LoRA(rank=2)),
    "full": Full(),
}
OBJECTIVES: dict[str, Objective] = {
    "sft": SFT(),
    "dpo": DPO(),
    "reward": Reward(),
    "ppo": PPO(critic_warmup=0, **ROUNDS),
    "rloo": RLOO(**ROUNDS),
    "grpo": GRPO(**ROUNDS),
}


def run(device: str, method: Method, objective: Objective, **more: Any) -> Trained:
    """Two rounds, or eight steps."""
    own = {"max_steps": 8} if not isinstance(objective, PolicyObjective) else {"epochs": 2}
    settings = TrainSettings(batch_size=2, lr=method.learning_rate, checkpoint_every=2, **own)
    data: Any = [Row(p.messages, p.chosen, p.number) for p in PAIRS] if isinstance(objective, SFT) else PAIRS
    if isinstance(objective, PolicyObjective):
        data = [{"prompt": f"say {'x' * i}"} for i in range(4)]
    return train(tiny_base(device=device), method, objective, data, **{"settings": settings, **more})


@pytest.mark.parametrize("goal", OBJECTIVES)
@pytest.mark.parametrize("name", METHODS)
def test_trained_as_on_the_cpu_and_interrupted(name: str, goal: str, tmp_path: Path) -> None:
    method, objective = METHODS[name], OBJECTIVES[goal]
    here = run("cpu", method, objective).result
    there = run("cuda", method, objective, out=tmp_path / "whole").result
    assert there.losses == pytest.approx(here.losses, rel=1e-3, abs=1e-4)
    assert there.peak_memory_mb > 0

    def stop(metrics: StepMetrics) -> None:
        if metrics.step == 5:
            raise KeyError

    with pytest.raises(KeyError):
        run("cuda", method, objective, out=tmp_path / "again", on_step=stop)
    again = run("cuda", method, objective, out=tmp_path / "again")
    assert again.result.losses == there.losses
    bank.verify(tmp_path / "again", tiny_base(device="cpu"))


@pytest.mark.parametrize("arch", ["llama", "gemma3_text", "qwen3", "gpt2"])
def test_a_mixed_batch_is_answered_as_on_the_cpu(arch: str) -> None:
    """The likeliest tokens, and samples too: they are drawn by a generator of each request's own."""
    found = []
    for device in ("cpu", "cuda"):
        engine = Engine(tiny_base(arch, device=device), slots=5)
        requests = []
        for i, name in enumerate(CUSTOMIZATIONS):
            engine.load(name, customized(name, arch, device))
            for sampling in (
                Sampling(max_new_tokens=8, logprobs=True),
                Sampling(max_new_tokens=8, temperature=1, seed=i),
            ):
                requests.append(Request("x" * (3 + 5 * i), name, sampling))
        found.append(engine.generate(requests))
    for here, there in zip(*found, strict=True):
        assert there.error is None and there.text == here.text
        assert there.logprobs == pytest.approx(here.logprobs, abs=1e-4)


def test_bfloat16_learns(tmp_path: Path) -> None:
    data = [Row(p.messages, p.chosen, p.number) for p in PAIRS]
    base = tiny_base(dtype=torch.bfloat16, device="cuda")
    settings = TrainSettings(max_steps=20, batch_size=4, lr=1e-2)
    trained = train(base, LoRA(rank=4), SFT(), data, settings=settings, out=tmp_path / "x")
    losses = trained.result.losses
    assert losses[-1] < 0.8 * losses[0]
    bank.verify(tmp_path / "x", tiny_base(dtype=torch.bfloat16, device="cuda"))
