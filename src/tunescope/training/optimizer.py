"""AdamW with warm-up and a cosine, over whatever a method trains."""

from __future__ import annotations

import math

import torch
from torch import nn

from tunescope.errors import TrainingError
from tunescope.methods import Customized


def trained_parameters(customized: Customized) -> dict[str, nn.Parameter]:
    """The parameters that training moves, by name.

    Raises:
        TrainingError: the method has none.
    """
    if customized.method.trains == "nothing":
        raise TrainingError(f"{customized.method.name} trains nothing, so there is nothing to optimize.")
    module = customized.base.model if customized.moves_base else customized.customization
    found = dict(module.named_parameters())
    if not found:
        raise TrainingError(f"{customized.method.name} has no parameter to train on this base: check its targets.")
    return found


def learning_rate_factor(step: int, total: int, warmup: float) -> float:
    """Share of the highest rate at ``step`` (from 0) of ``total``: a linear rise, then half a cosine down to zero.

    The first step already learns (step 0 of a rise over n steps has the share 1/n), and so does the last.
    """
    rising = math.ceil(warmup * total)
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(total - rising, 1)))


def make_optimizer(customized: Customized, lr: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW with one group a rate: a method may ask for a multiple of the rate for some of its parameters."""
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in trained_parameters(customized).items():
        parameter.requires_grad_(True)
        groups.setdefault(customized.method.rate_of(name), []).append(parameter)
    return torch.optim.AdamW(
        [{"params": params, "lr": lr * ratio, "ratio": ratio} for ratio, params in groups.items()],
        lr=lr,
        weight_decay=weight_decay,
        fused=True,
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group its multiple of ``lr``."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["ratio"]
