"""IA3 in PEFT's format."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from transformers.pytorch_utils import Conv1D

from tunescope.bank.assemble import assemble_ia3
from tunescope.bank.peft.config import PeftConfig, matching
from tunescope.bank.peft.modules import (
    PREFIX,
    Adapter,
    by_module,
    grouped,
    linear_sites,
    output_rows,
    output_width,
    targets,
)
from tunescope.base import Base
from tunescope.data.template import Template
from tunescope.errors import BankError
from tunescope.methods import Customized
from tunescope.methods.effects import Scale


def ia3_to_peft(customized: Customized) -> Adapter:
    """An IA3; scales of inputs become ``feedforward_modules``."""
    scales = {
        key.rpartition(".")[0]: effect
        for key, effect in customized.customization.effects.items()
        if isinstance(effect, Scale)
    }
    tensors, feedforward, conv = {}, set(), False
    modules = by_module(customized.base, scales)
    for path, sites in modules.items():
        conv |= isinstance(sites[0].module, Conv1D)
        if scales[sites[0].key].where == "input":
            feedforward.add(path)
            tensors[f"{PREFIX}{path}.ia3_l"] = scales[sites[0].key].vector.detach()[None, :]
            continue
        whole = torch.ones(output_width(sites[0].module))
        for site in sites:
            whole[output_rows(site)] = scales[site.key].vector.detach().cpu()
        tensors[f"{PREFIX}{path}.ia3_l"] = whole[:, None]
    named = targets(customized.base, set(modules))
    # PEFT wants the feed-forward modules named by the same texts as the targets.
    on_input = [target for target in named if matching([target], sorted(feedforward))]
    if set(matching(on_input, sorted(modules))) != feedforward:
        named, on_input = sorted(modules), sorted(feedforward)
    config = {
        "peft_type": "IA3",
        "target_modules": named,
        "feedforward_modules": on_input,
        "fan_in_fan_out": conv,
    }
    return config, tensors


def ia3_from_peft(
    config: PeftConfig, tensors: Mapping[str, torch.Tensor], base: Base, template: Template
) -> Customized:
    """An IA3 that PEFT wrote.

    Raises:
        BankError: tensors that are missing, unexpected or of another shape, or a scale of a fused module's input.
    """
    outputs: dict[str, torch.Tensor] = {}
    inputs: dict[str, torch.Tensor] = {}
    found = grouped(config, tensors, base, ("ia3_l",))
    on_input = matching(config.feedforward_modules, list(found))
    for path, own in found.items():
        vector = own["ia3_l"]
        sites = linear_sites(base, path)
        feedforward = path in on_input
        wanted = (1, sites[0].in_features) if feedforward else (output_width(sites[0].module), 1)
        if tuple(vector.shape) != wanted:
            raise BankError(f"{path}.ia3_l has shape {tuple(vector.shape)}, but this base needs {wanted}.")
        if feedforward and sites[0].part is not None:
            raise BankError(f"{path} computes several sites at once, and scaling its input has no equivalent here.")
        for site in sites:
            if feedforward:
                inputs[site.key] = vector.flatten()
            else:
                outputs[site.key] = vector.flatten()[output_rows(site)]
    return assemble_ia3(base, outputs, inputs, template)
