"""IA3 and DoRA as a plain LoRA, for tools that know nothing else: the nearest one of a rank, with its error."""

from __future__ import annotations

import torch

from tunescope.bank.assemble import LoRAPart, assemble_lora
from tunescope.bank.merge import check_mergeable, merged_model, nearest_of_rank
from tunescope.base import Sites
from tunescope.errors import BankError
from tunescope.methods import Customized


def as_lora(customized: Customized, rank: int) -> tuple[Customized, float]:
    """The LoRA that changes the base's weights nearly as a customization does.

    At each site the change of the weight, of a scale (l - 1) ⊙ W, is cut to its largest ``rank`` singular values. A
    change of rank ``rank`` and less is exact: that of a LoRA, alone or on top of others.

    Args:
        customized: LoRA, DoRA, IA3, or what is composed of them.
        rank: of the result, at every site.

    Returns:
        the LoRA, and its relative error: √(Σ‖cut - whole‖² / Σ‖whole‖²) over all sites.

    Raises:
        BankError: what changes no weights, or scales a bias, for which a LoRA has no place.
    """
    check_mergeable(customized)
    base, keys = customized.base, {
        key.rpartition(".")[0] for layer in customized.customization.layers for key in layer.effects
    }  # fmt: skip
    merged = Sites(merged_model(base, customized.customization))
    parts: dict[str, LoRAPart] = {}
    missed = total = 0.0
    for site in base.sites.all:
        if site.key not in keys:
            continue
        changed, bias = merged[site.key], site.bias
        if bias is not None and changed.bias is not None and not torch.equal(changed.bias, bias.float()):
            raise BankError(
                f"It changes the bias at {site.key}, for which a LoRA has no place. Write it into the weights with "
                "--to transformers."
            )
        whole = (changed.weight.detach() - site.weight.detach().float()).cpu()
        parts[site.key], error = nearest_of_rank(whole, rank)
        size = whole.norm().item()
        missed, total = missed + (error * size) ** 2, total + size**2
    return assemble_lora(base, parts, customized.template), (missed / total) ** 0.5 if total else 0.0
