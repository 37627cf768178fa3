"""Customizations of every kind of effect on a tiny base, and the slow obvious way to run one of them."""

from __future__ import annotations

import functools

import torch
from tests.tiny import DEVICE, tiny_base

from tunescope.data.rows import Row
from tunescope.data.template import default_template
from tunescope.methods import (
    IA3,
    Adapter,
    Customized,
    FewShot,
    LoRA,
    Method,
    PromptTuning,
    PTuning,
    System,
    compose,
    customize,
)

METHODS: dict[str, Method] = {
    "system": System(instruction="be brief"),
    "few-shot": FewShot(shots=2, choice="balanced"),
    "few-shot-nearest": FewShot(shots=1, pool=3),
    "prompt-tuning": PromptTuning(virtual_tokens=5),
    "p-tuning": PTuning(virtual_tokens=3),
    "lora": LoRA(rank=2),
    "lora-all-linear": LoRA(rank=5, targets=("all-linear",)),
    "dora": LoRA(rank=3, dora=True, targets=("q", "v", "o")),
    "ia3": IA3(),
    "adapter": Adapter(bottleneck=4),
    "adapter-houlsby": Adapter(bottleneck=3, placement="houlsby", activation="gelu"),
    "prompt-tuning+lora": compose(PromptTuning(virtual_tokens=4), LoRA(rank=2)),
    "dora+ia3": compose(LoRA(rank=2, dora=True, targets=("k", "v")), IA3()),
}
# A mixture of experts has no feed-forward sites.
WITHOUT_FEEDFORWARD = tuple(name for name in METHODS if name not in ("ia3", "dora+ia3"))


def methods_of(arch: str) -> tuple[str, ...]:
    return WITHOUT_FEEDFORWARD if arch == "mixtral" else tuple(METHODS)


@functools.cache
def customized(name: str, arch: str = "llama", device: str = DEVICE) -> Customized:
    """Of that method, its tensors moved so far that every effect matters."""
    base = tiny_base(arch, device=device)
    rows = [Row(({"role": "user", "content": f"row {i}"},), f"answer {i}", i) for i in range(4)]
    made = customize(base, METHODS[name], default_template(base.tokenizer), rows, seed=1)
    generator = torch.Generator().manual_seed(sum(map(ord, name)))
    with torch.no_grad():
        for parameter in made.customization.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator).to(device))
    made.finish()
    return made


@torch.no_grad()
def reference_logits(made: Customized, prompt: list[int], written: list[int]) -> torch.Tensor:
    """[written, vocabulary]: one text alone, all of it in one pass, without any cache."""
    with made.active() as base:
        ids = torch.tensor([prompt + written[:-1]], device=base.device)
        return base.forward(ids, torch.ones_like(ids))[0, len(prompt) - 1 :].cpu()
