"""LoRA in PEFT's format, with rsLoRA and DoRA."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from tunescope.bank.assemble import LoRAPart, assemble_lora, lora_parts
from tunescope.bank.peft.config import PeftConfig
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
from tunescope.base import Base, Site
from tunescope.data.template import Template
from tunescope.errors import BankError
from tunescope.methods import Customized, LoRA

# Initializations that also changed the base's weights, so that the adapter alone does not say what was trained.
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


def lora_to_peft(customized: Customized, method: LoRA) -> Adapter:
    """A LoRA, with those that it starts from.

    Raises:
        BankError: it starts from LoRAs that have no sum (see ``lora_parts``).
    """
    modules: dict[str, tuple[nn.Module, LoRAPart]] = {}
    parts = lora_parts(customized)
    for path, sites in by_module(customized.base, parts).items():
        modules[path] = (sites[0].module, _join(sites, [parts[site.key] for site in sites]))
    tensors = {}
    for path, (_, part) in modules.items():
        tensors[f"{PREFIX}{path}.lora_A.weight"] = part.A
        tensors[f"{PREFIX}{path}.lora_B.weight"] = part.B
        if part.magnitude is not None:
            tensors[f"{PREFIX}{path}.lora_magnitude_vector"] = part.magnitude
    root = 0.5 if method.rslora else 1.0
    alphas = {path: _whole(part.scaling * part.rank**root) for path, (_, part) in modules.items()}
    ranks = {path: part.rank for path, (_, part) in modules.items()}
    rank, alpha = next(iter(ranks.values())), next(iter(alphas.values()))
    config = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {path: value for path, value in ranks.items() if value != rank},
        "alpha_pattern": {path: value for path, value in alphas.items() if value != alpha},
        "target_modules": targets(customized.base, set(modules)),
        "lora_dropout": method.dropout,
        "bias": "none",
        "fan_in_fan_out": any(isinstance(module, Conv1D) for module, _ in modules.values()),
        "use_rslora": method.rslora,
        "use_dora": method.dora,
    }
    return config, tensors


def lora_from_peft(
    config: PeftConfig, tensors: Mapping[str, torch.Tensor], base: Base, template: Template
) -> Customized:
    """A LoRA that PEFT wrote.

    Raises:
        BankError: tensors that are missing, unexpected or of another shape, or an initialization that changed the base.
    """
    if str(config.init_lora_weights).lower().startswith(_CHANGES_BASE):
        raise BankError(
            f"it was begun with {config.init_lora_weights}, which changes the base's weights: convert it to a plain "
            "LoRA first (PEFT's save_pretrained with path_initial_model_for_weight_conversion)."
        )
    dora = bool(config.use_dora)
    names = ("lora_A.weight", "lora_B.weight", *(["lora_magnitude_vector"] if dora else []))
    found = grouped(config, tensors, base, names)
    rslora, parts = bool(config.use_rslora), {}
    settings = config.ranks_and_alphas(list(found))
    for path, own in found.items():
        A, B = own["lora_A.weight"], own["lora_B.weight"]
        rank, alpha = settings[path]
        sites = linear_sites(base, path)
        width = output_width(sites[0].module)
        for name, tensor, wanted in (
            ("lora_A", A, (rank, sites[0].in_features)),
            ("lora_B", B, (width, rank)),
            ("lora_magnitude_vector", own["lora_magnitude_vector"].flatten() if dora else torch.empty(width), (width,)),
        ):
            if tuple(tensor.shape) != wanted:
                raise BankError(f"{path}.{name} has shape {tuple(tensor.shape)}, but this base needs {wanted}.")
        scaling = alpha / rank ** (0.5 if rslora else 1.0)
        magnitude = own["lora_magnitude_vector"].flatten() if dora else None
        for site in sites:
            rows = output_rows(site)
            parts[site.key] = LoRAPart(A, B[rows], scaling, None if magnitude is None else magnitude[rows])
    return assemble_lora(base, parts, template, dropout=config.lora_dropout or 0.0, rslora=rslora)


def _join(sites: list[Site], parts: list[LoRAPart]) -> LoRAPart:
    """The changes of some sites of one module as one change of the whole module.

    The A matrices lie below each other, and each B stands in the rows of its site and the columns of its A. With DoRA
    the rows of the module's other sites have the length of their own weights, so that they are left as they are.
    """
    if sites[0].part is None:
        return parts[0]
    ranks = [part.rank for part in parts]
    width = output_width(sites[0].module)
    B = torch.zeros(width, sum(ranks))
    for site, part, columns in zip(sites, parts, torch.arange(sum(ranks)).split(ranks), strict=True):
        B[output_rows(site)[:, None], columns] = part.B * part.scaling / parts[0].scaling
    magnitude = None
    if parts[0].magnitude is not None:
        weight: Any = sites[0].module.weight
        weight = weight.detach().float().cpu()
        magnitude = weight.norm(dim=0 if isinstance(sites[0].module, Conv1D) else 1)
        for site, part in zip(sites, parts, strict=True):
            assert part.magnitude is not None
            magnitude[output_rows(site)] = part.magnitude
    return LoRAPart(torch.cat([part.A for part in parts]), B, parts[0].scaling, magnitude)


def _whole(number: float) -> float:
    """16.0 as 16: readers that want an integer get one where it is."""
    rounded = round(number)
    return rounded if abs(number - rounded) < 1e-9 * max(abs(number), 1) else number
