"""Customizations away from their start, and their twins in transformers and PEFT: the same weights."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.tiny import tiny_base

from tunescope.bank.peft import export_peft
from tunescope.data.encoding import Encoder
from tunescope.data.rows import Row
from tunescope.data.template import Template
from tunescope.methods import Customized, Method, customize
from tunescope.objectives import Objective, PolicyObjective, Rollout, Sampled, Services

peft = pytest.importorskip("peft")

CLOSE = {"atol": 1e-4, "rtol": 1e-3}
# Of every configuration of a trainer of TRL.
COMMON: dict[str, Any] = {"report_to": "none", "use_cpu": True, "bf16": False}
# Of a round of policy optimization, and how many samples each of these has.
PROMPTS, SAMPLES = ("a b", "c d e f"), 3


def start(method: Method, objective: Objective) -> Customized:
    """A customization that is no longer at its start, asking for gradients."""
    base = tiny_base()
    generator = torch.Generator().manual_seed(1)
    made = customize(base, method, Template(style="plain"), seed=1, added=objective.effects(base, generator))
    module = made.base.model if made.moves_base else made.customization
    with torch.no_grad():
        for parameter in [*module.parameters(), *made.customization.parameters()]:
            parameter.requires_grad_(True).add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return made


def as_peft(customized: Customized, folder: Path) -> tuple[Any, dict[str, torch.Tensor]]:
    """PEFT's configuration and tensors of our LoRA, without what the objective added."""
    plain = copy.copy(customized.customization)
    plain.effects = {key: e for key, e in plain.effects.items() if e.where != "head"}
    export_peft(Customized(customized.base, plain, customized.origin), folder)
    config = peft.LoraConfig.from_pretrained(folder)
    config.inference_mode = False
    return config, load_file(folder / "adapter_model.safetensors")


def same_gradients(customized: Customized, model: Any) -> None:
    """Every gradient of ours has its equal in a transformers or PEFT model."""
    theirs = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    compared = 0
    if customized.moves_base:
        for name, parameter in customized.base.model.named_parameters():
            if parameter.grad is not None:
                torch.testing.assert_close(parameter.grad, theirs[name], **CLOSE)
                compared += 1
    for key, effect in customized.customization.effects.items():
        if effect.where == "head":
            continue
        path = customized.base.sites[key.rpartition(".")[0]].path
        for own, their in ((effect.A, "lora_A"), (effect.B, "lora_B")):
            grad = next(g for name, g in theirs.items() if f"{path}.{their}." in name)
            torch.testing.assert_close(own.grad, grad, **CLOSE)
            compared += 1
    assert compared >= 8


@torch.no_grad()
def move(customized: Customized, seed: int) -> None:
    """Move its parameters a little, as a step of training would."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in customized.customization.parameters():
        parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
        parameter.grad = None


def round_of(
    objective: PolicyObjective, customized: Customized, lengths: Sequence[int], critic: Customized | None = None
) -> tuple[list[Rollout], torch.Tensor]:
    """A round of samples of drawn tokens, and their scores [prompts · n].

    Args:
        objective: with ``SAMPLES`` samples a prompt.
        customized: the policy.
        lengths: of the samples of each prompt, none of which has a stop token.
        critic: PPO's.
    """
    generator = torch.Generator().manual_seed(3)
    scores = torch.randn(len(PROMPTS), SAMPLES, generator=generator)

    def drawn(name: str, length: int) -> Sampled:
        tokens = torch.randint(0, 256, (length,), generator=generator).tolist()
        return Sampled(name, tuple(tokens), False, (0.0,) * length)

    samples = [[drawn(f"{i} {k}", length) for k, length in enumerate(lengths)] for i in range(len(PROMPTS))]
    worth = {f"{i} {k}": float(scores[i, k]) for i in range(len(PROMPTS)) for k in range(SAMPLES)}

    def sample(_: Any, prompts: Sequence[Any], *, n: int, **__: Any) -> list[list[Sampled]]:
        return [own[:n] for own in samples[: len(prompts)]]

    def score(_: Any, texts: Sequence[str]) -> dict[str, list[float | str]]:
        return {"reward": [worth[text] for text in texts]}

    rows = [Row(({"role": "user", "content": text},), None, i + 1) for i, text in enumerate(PROMPTS)]
    encoder = Encoder(customized.base.tokenizer, customized.template, customized.base.context_length)
    services = Services(sample, 0, score, critic)
    return objective.collect(0, customized, objective.examples(rows, encoder), services), scores.flatten()


def mean_loss(objective: Objective, customized: Customized, rollouts: Sequence[Rollout]) -> float:
    """The loss of a step on all rollouts, with its gradients left in the parameters."""
    batch = objective.collate(rollouts)
    with customized.active():
        loss = objective.batch_loss(customized, batch).total / objective.weight(batch)
        loss.backward()
    return loss.item()
