"""Between the modules that PEFT targets and the sites that effects act on: one module may hold several sites."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from tunescope.bank.peft.config import PeftConfig, matching
from tunescope.base import Base, Site
from tunescope.base.sites import LINEAR_SITES
from tunescope.errors import BankError
from tunescope.methods.customization import some

PREFIX = "base_model.model."
"""What PEFT writes before a module's path in the names of tensors."""

Adapter = tuple[dict[str, Any], dict[str, torch.Tensor]]
"""What PEFT keeps of an adapter: settings that are its own, and tensors by name."""


def grouped(
    config: PeftConfig, tensors: Mapping[str, torch.Tensor], base: Base, names: tuple[str, ...]
) -> dict[str, dict[str, torch.Tensor]]:
    """Module path -> its tensors by name, checked against what the configuration targets.

    Raises:
        BankError: missing or unexpected tensors, or a target that is no site.
    """
    wanted = {f"{PREFIX}{path}.{name}" for path in config.targeted(base) for name in names}
    # PEFT has written DoRA's magnitude with and without this ending.
    given = {re.sub(r"(lora_magnitude_vector)\.weight$", r"\1", key): tensor for key, tensor in tensors.items()}
    if missing := sorted(wanted - set(given)):
        raise BankError(f"Missing tensors: {some(missing)}.")
    if unexpected := sorted(set(given) - wanted):
        raise BankError(f"Unexpected tensors: {some(unexpected)}.")
    known = {site.path for site in base.sites.all if site.name in LINEAR_SITES}
    found: dict[str, dict[str, torch.Tensor]] = {}
    for key in sorted(wanted):
        path, name = next((key.removesuffix(f".{n}"), n) for n in names if key.endswith(f".{n}"))
        path = path.removeprefix(PREFIX)
        if path not in known:
            raise BankError(f"It targets {path}, which is no site that can be customized here.")
        found.setdefault(path, {})[name] = given[key]
    if not found:
        raise BankError("Its target_modules match nothing in this base.")
    return found


def linear_sites(base: Base, path: str) -> list[Site]:
    """The sites of linear maps that the module at ``path`` holds: one, or several where it is fused."""
    return [site for site in base.sites.all if site.path == path and site.name in LINEAR_SITES]


def by_module(base: Base, keys: Mapping[str, Any]) -> dict[str, list[Site]]:
    """Module path -> those of its sites that are among ``keys``."""
    found: dict[str, list[Site]] = {}
    for site in base.sites.all:
        if site.key in keys:
            found.setdefault(site.path, []).append(site)
    return found


def targets(base: Base, paths: set[str]) -> list[str]:
    """``target_modules`` for these modules: endings (``q_proj``) where they name no others, else whole paths."""
    all_paths = [path for path, module in base.model.named_modules() if isinstance(module, nn.Linear | Conv1D)]
    for parts in (1, 2):
        endings = sorted({".".join(path.split(".")[-parts:]) for path in paths})
        if set(matching(endings, all_paths)) == paths:
            return endings
    return sorted(paths)


def output_rows(site: Site) -> torch.Tensor:
    """The rows of its module's output that are the site's."""
    return torch.arange(output_width(site.module)) if site.part is None else site.part.cpu()


def output_width(module: Any) -> int:
    """How many features a linear map gives."""
    return module.nf if isinstance(module, Conv1D) else module.out_features
