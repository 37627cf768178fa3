"""AdamW with warm-up and a cosine, over whatever a method trains."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

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
    found = dict(customized.customization.named_parameters())
    if customized.moves_base:
        found |= dict(customized.base.model.named_parameters())
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


class Optimizer:
    """AdamW that moves a customization's parameters through float32 masters.

    A parameter that computes in bfloat16 (a moved base on hardware that is fast in it) has too few digits to take small
    steps: each step is taken by a float32 copy and rounded into it (Micikevicius et al. 2018, arXiv:1710.03740,
    section 3.1). A float32 parameter is its own master.

    Weight decay is decoupled (Loshchilov and Hutter 2019, arXiv:1711.05101) and pulls each parameter p to the value p0
    at which it changes nothing of the base, p ← p - rate · weight_decay · (p - p0), so that more of it always means
    nearer to the base: one for IA3's scales, the base's own lengths for DoRA's magnitudes, the pretrained weights under
    full fine-tuning (L2-SP, Li et al. 2018, arXiv:1802.01483), zero for the rest. Pulled to zero, a scale would switch
    its activation off. Biases and norms need no exception: they are pulled to their own identity too.

    Args:
        customized: what is trained; its parameters ask for gradients from now on.
        lr: the highest rate. A method may ask for a multiple of it for some of its parameters.
        weight_decay: decoupled, a share of the rate.
    """

    def __init__(self, customized: Customized, lr: float, weight_decay: float) -> None:
        self.parameters = trained_parameters(customized)
        self.masters = {name: _master(parameter) for name, parameter in self.parameters.items()}
        self.lr, self.weight_decay = lr, weight_decay
        groups: dict[float, list[nn.Parameter]] = {}
        for name, master in self.masters.items():
            groups.setdefault(customized.rate_of(name), []).append(master)
        self._identities = {
            master: customized.identity_of(name) for name, master in self.masters.items() if weight_decay
        }
        self._adamw = torch.optim.AdamW(
            [{"params": masters, "ratio": ratio} for ratio, masters in groups.items()],
            lr=lr,
            weight_decay=0.0,  # done in ``_decay``
            fused=True,
        )

    @property
    def device(self) -> torch.device:
        """Where the parameters lie."""
        return next(iter(self.parameters.values())).device

    def gradient_norm(self, most: float) -> float:
        """Collect the gradients for ``step``, scaled down to the length ``most``; returns their length before that."""
        for parameter, master in self._pairs():
            if parameter.grad is not None and parameter is not master:
                master.grad, parameter.grad = parameter.grad.float(), None
        return torch.nn.utils.clip_grad_norm_(self.masters.values(), most).item()

    @torch.no_grad()
    def step(self, factor: float) -> None:
        """Move the parameters at ``factor`` times the highest rate, and clear the gradients."""
        for group in self._adamw.param_groups:
            group["lr"] = self.lr * factor * group["ratio"]
            self._decay(group)
        self._adamw.step()
        self._adamw.zero_grad(set_to_none=True)
        self._round()

    def tensors(self) -> dict[str, torch.Tensor]:
        """Everything that a resumed run needs, on the CPU."""
        kept = {f"parameter.{name}": master.detach() for name, master in self.masters.items()}
        for name, master in self.masters.items():
            kept |= {f"optimizer.{key}.{name}": value for key, value in self._adamw.state.get(master, {}).items()}
        return {name: tensor.cpu().contiguous() for name, tensor in kept.items()}

    @torch.no_grad()
    def load_tensors(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Go on from what ``tensors`` returned.

        Raises:
            KeyError: a tensor that is missing: they are of another method.
        """
        for name, master in self.masters.items():
            master.copy_(tensors[f"parameter.{name}"])
            if f"optimizer.step.{name}" in tensors:
                moments = {key: tensors[f"optimizer.{key}.{name}"] for key in ("exp_avg", "exp_avg_sq", "step")}
                self._adamw.state[master] = {key: tensor.to(master.device) for key, tensor in moments.items()}
        self._round()

    def _decay(self, group: dict[str, Any]) -> None:
        """Pull the parameters that have a gradient to their identity, by weight_decay times the group's rate."""
        share = self.weight_decay * group["lr"]
        for master in group["params"] if share else ():
            if master.grad is not None:
                master.lerp_(self._identities[master].to(master.dtype), share)

    def _pairs(self) -> Iterable[tuple[nn.Parameter, nn.Parameter]]:
        return zip(self.parameters.values(), self.masters.values(), strict=True)

    def _round(self) -> None:
        for parameter, master in self._pairs():
            if parameter is not master:
                parameter.copy_(master)


def _master(parameter: nn.Parameter) -> nn.Parameter:
    parameter.requires_grad_(True)
    return parameter if parameter.dtype == torch.float32 else nn.Parameter(parameter.detach().float())
