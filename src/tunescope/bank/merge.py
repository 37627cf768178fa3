"""Merging: a customization into the weights of a model of its own, or several LoRAs into one.

LoRA, DoRA and IA3 are linear in the weights, so a merged model computes the same without the extra work. Virtual tokens
and adapters are not: no weights of the base could do what they do.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from tunescope import storage
from tunescope.bank.assemble import LoRAPart, assemble_lora, concatenated, lora_parts
from tunescope.base import Base, Site, Sites
from tunescope.base.device import dtype_name
from tunescope.base.loading import in_dtype
from tunescope.base.quantized import write_out
from tunescope.errors import BankError
from tunescope.locks import writing
from tunescope.methods import Customization, Customized, LoRA
from tunescope.methods.effects import LowRank, Scale

Combination = Literal["linear", "ties", "dare"]
_WHY_NOT = {
    "prefix": "virtual tokens are inputs, and a model's weights hold no place for them",
    "bottleneck": "an adapter is a network with a nonlinear function inside, which no weight of the base can take up",
}


@dataclass(frozen=True)
class Merged:
    """A model folder that a customization was merged into.

    ``max_error`` and ``mean_error`` are measured: absolute differences of its logits from those of the customization
    unmerged, on random tokens, both in ``dtype``; ``mean_logit`` is the logits' mean size, to compare them with.
    """

    folder: Path
    dtype: str
    max_error: float
    mean_error: float
    mean_logit: float


def merge_into_base(customized: Customized, folder: Path, *, dtype: torch.dtype | None = None) -> Merged:
    """Write a transformers model folder whose weights compute what the customization does.

    The sum is formed in float32, for which quantized weights are written out, and rounded once. The template's stop
    tokens become the model's end-of-text tokens.

    Args:
        customized: LoRA, DoRA, IA3, or what is composed of them.
        folder: to write; it must not exist.
        dtype: precision to store; the base's own by default.

    Raises:
        BankError: a method that cannot be merged, with the reason.
        TunescopeError: a folder that exists, or that another run writes.
    """
    check_mergeable(customized)
    with writing(folder):
        storage.check_replaceable(folder, None)
        return _write_merged(customized, folder, dtype)


def _write_merged(customized: Customized, folder: Path, dtype: torch.dtype | None) -> Merged:
    dtype = dtype or customized.base.dtype
    model = in_dtype(merged_model(customized.base, customized.customization), dtype)
    model.generation_config.eos_token_id = list(customized.template.stop)
    errors = _measure(customized, model, dtype)
    with storage.atomic_folder(folder) as partial:
        model.save_pretrained(partial)
        customized.base.tokenizer.save_pretrained(partial)
    return Merged(folder, dtype_name(dtype), *errors)


def merged_model(base: Base, customization: Customization) -> Any:
    """A float32 copy of the base's model with the effects in its weights, those that it starts from first.

    The base stays as it is.
    """
    model = write_out(in_dtype(copy.deepcopy(base.model), torch.float32))
    sites = Sites(model)
    effects = [(key, effect) for layer in customization.layers for key, effect in layer.effects.items()]
    # Every B A reads the input as it is after all scales of it, so these go into the weights last.
    for key, effect in sorted(effects, key=lambda item: item[1].where == "input"):
        if isinstance(effect, LowRank):
            _put_low_rank(sites[key.rpartition(".")[0]], effect)
        elif isinstance(effect, Scale):
            site, vector = sites[key.rpartition(".")[0]], effect.vector.detach().float()
            along = vector[None, :] if effect.where == "input" else vector[:, None]
            site.set_weight(site.weight.detach() * along)
            if effect.where == "output" and site.bias is not None:
                site.set_bias(site.bias.detach() * vector)
    return model


def merge(
    loras: Sequence[Customized],
    weights: Sequence[float] | None = None,
    *,
    how: Combination = "linear",
    density: float = 0.5,
    rank: int | None = None,
    seed: int = 0,
) -> tuple[Customized, float]:
    """One LoRA of several on the same base.

    With the default weights every rule makes an entry merged with itself that entry again, but for what ``ties`` and
    ``dare`` leave out below a ``density`` of 1.

    * ``linear``: the weighted sum of their changes, exact, with the sum of their ranks.
    * ``ties`` (Yadav et al. 2023, arXiv:2306.01708, section 3): keep the largest ``density`` of the entries of each
      change, all of its sites together; elect each entry's sign by the weighted sum; average those that agree with it,
      Σ weight · entry / Σ |weight|, the paper's λ being 1. Only the ratio of the weights counts.
    * ``dare`` (Yu et al. 2023, arXiv:2311.03099): drop entries at random, all but ``density`` of them, divide the rest
      by ``density``, so that the expectation stays, and take the weighted sum.

    ``ties`` and ``dare`` work on each site's B A. What comes out has no low rank any more, so it is cut to ``rank`` by
    its singular values.

    Args:
        loras: two or more, without DoRA.
        weights: of each; by default equal ones that sum to 1. Used as given: weights of 1 add whole changes up.
        how: the rule.
        density: share of entries kept, for ties and dare.
        rank: of the result, for ties and dare; the sum of their ranks by default.
        seed: of dare's choice.

    Returns:
        the LoRA, and the relative error of the cut: the largest over the sites of ‖cut - whole‖ / ‖whole‖.

    Raises:
        BankError: customizations that cannot be combined, with the reason.
    """
    weights = list(weights) if weights is not None else [1 / max(len(loras), 1)] * len(loras)
    _check_combinable(loras, weights)
    if not 0 < density <= 1:
        raise BankError(f"density is {density}, but it is a share: above 0 and at most 1.")
    base, found = loras[0].base, [lora_parts(lora) for lora in loras]
    generator = torch.Generator().manual_seed(seed)
    thresholds = [_threshold(list(parts.values()), density) if how == "ties" else 0.0 for parts in found]
    parts, worst = {}, 0.0
    for site in base.sites.all:
        having = [i for i, parts_of in enumerate(found) if site.key in parts_of]
        own = [(found[i][site.key], weights[i]) for i in having]
        if not own:
            continue
        if how == "linear":
            parts[site.key] = concatenated(own)
            continue
        deltas = torch.stack([part.delta() for part, _ in own])
        shares = deltas.new_tensor([weight for _, weight in own])[:, None, None]
        if how == "ties":
            least = deltas.new_tensor([thresholds[i] for i in having])[:, None, None]
            whole = _ties(deltas * (deltas.abs() >= least), shares)
        else:
            whole = (shares * _dare(deltas, density, generator)).sum(dim=0)
        parts[site.key], error = nearest_of_rank(whole, rank or sum(part.rank for part, _ in own))
        worst = max(worst, error)
    template = loras[0].template
    if any(lora.template.pattern != template.pattern for lora in loras):
        template = template.model_copy(update={"pattern": None})
    return assemble_lora(base, parts, template), worst


def refuse_heads(customized: Customized, where: str) -> None:
    """Refuse what would lose a part that an objective added: a reward model without its head gives no rewards.

    Raises:
        BankError: naming the part.
    """
    for name in customized.customization.heads:
        raise BankError(f"This entry has a {name} head, which {where} has no place for. Serve it as it is.")


def check_mergeable(customized: Customized) -> None:
    """Refuse what no weights of the base can take up.

    Raises:
        BankError: with the reason.
    """
    refuse_heads(customized, "a merged language model")
    if customized.moves_base:
        raise BankError("Full fine-tuning is a model already: its folder in the bank can be used as a base.")
    effects = [
        effect
        for layer in customized.customization.layers
        for effect in layer.effects.values()
        if effect.where != "head"
    ]
    if not effects:
        raise BankError(f"{customized.method.name} changes no weights, only the text around a row: nothing to merge.")
    for effect in effects:
        if not isinstance(effect, LowRank | Scale):
            why = _WHY_NOT.get(effect.kind, "it is not linear in the weights")
            raise BankError(f"{customized.method.name} cannot be merged into the weights: {why}. Serve it as it is.")


def _check_combinable(loras: Sequence[Customized], weights: Sequence[float]) -> None:
    if len(loras) < 2 or len(loras) != len(weights):
        raise BankError(f"Give two or more LoRAs and a weight for each: {len(loras)} LoRAs, {len(weights)} weights.")
    if not all(map(math.isfinite, weights)) or not any(weights):
        raise BankError(f"The weights are {', '.join(map(str, weights))}: give finite numbers that are not all zero.")
    first = loras[0]
    for lora in loras:
        refuse_heads(lora, "a sum of LoRAs")
        if (start := lora.customization.start) is not None and start.acts:
            raise BankError(
                f"One of the LoRAs starts from a {start.method.name} entry, on which its change rests: it adds up with "
                "no other's. Write it into the weights instead: tunescope bank export ENTRY --to transformers."
            )
        if not isinstance(lora.method, LoRA) or lora.method.dora:
            name = "DoRA" if isinstance(lora.method, LoRA) else lora.method.name
            raise BankError(f"Only LoRAs without DoRA can be combined: their changes add up. {name} is not one.")
        if differing := first.origin.fingerprint.differences(lora.origin.fingerprint):
            raise BankError(f"LoRAs of different bases cannot be combined: another {' and '.join(differing)}.")
        same = {"pattern": None}
        if lora.template.model_copy(update=same) != first.template.model_copy(update=same):
            raise BankError("LoRAs trained under different templates (style, system text, stop) cannot be combined.")


def _put_low_rank(site: Site, effect: LowRank) -> None:
    changed = site.weight.detach() + effect.delta_weight().detach()
    if effect.magnitude is None:
        site.set_weight(changed)
        return
    stretch = effect.magnitude.detach() / effect.direction_norm()
    site.set_weight(changed * stretch[:, None])
    if site.bias is not None and effect.bias is not None:  # stretched but for the base's own, which is added after
        own = effect.bias.detach().float()
        site.set_bias((site.bias.detach() - own) * stretch + own)


def _measure(customized: Customized, model: Any, dtype: torch.dtype) -> tuple[float, float, float]:
    """(largest error, mean error, mean size) of the merged model's logits in ``dtype``."""
    base = customized.base
    high = min(len(base.tokenizer), model.config.get_text_config().vocab_size)
    ids = torch.randint(0, high, (4, min(64, base.context_length)), generator=torch.Generator().manual_seed(0))
    ids = ids.to(base.device)
    unmerged = base if dtype == base.dtype else Base(copy.deepcopy(base.model), base.tokenizer, dtype=dtype)
    with torch.no_grad():
        with customized.customization.applied(unmerged):
            expected = unmerged.forward(ids, torch.ones_like(ids)).float()
        found = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.float()
    error = (found - expected).abs()
    return error.max().item(), error.mean().item(), expected.abs().mean().item()


def _ties(trimmed: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """[loras, out, in] to [out, in]: elect signs, and take the weighted mean of the entries that agree."""
    weighted = weights * trimmed
    agree = (weighted.sign() == weighted.sum(dim=0).sign()) & (weighted != 0)
    total = (weights.abs() * agree).sum(dim=0)
    return (weighted * agree).sum(dim=0) / torch.where(total > 0, total, 1.0)


def _threshold(parts: Sequence[LoRAPart], density: float) -> float:
    """The size that the largest ``density`` of a change's entries have at least, all sites together.

    Found exactly in two passes, so that no more than one site's B A is ever in memory: float32 sizes are in the order
    of their bits, whose upper and then lower half are counted.
    """
    wanted = max(round(density * sum(part.B.shape[0] * part.A.shape[1] for part in parts)), 1)
    found = 0
    for shift in (16, 0):
        counts = torch.zeros(1 << 16, dtype=torch.int64)
        for part in parts:
            bits = part.delta().abs().flatten().view(torch.int32)
            inside = bits if shift else bits[bits >> 16 == found >> 16]
            counts += torch.bincount(inside >> shift & 0xFFFF, minlength=1 << 16)
        from_largest = counts.flip(0).cumsum(0)
        place = int(torch.searchsorted(from_largest, wanted))
        wanted -= int(from_largest[place - 1]) if place else 0
        found |= (0xFFFF - place) << shift
    return torch.tensor(found, dtype=torch.int32).view(torch.float32).item()


def _dare(deltas: torch.Tensor, density: float, generator: torch.Generator) -> torch.Tensor:
    """[loras, out, in] with entries dropped at random and the rest made larger, so that the expectation stays."""
    return deltas * (torch.rand(deltas.shape, generator=generator) < density) / density


def nearest_of_rank(whole: torch.Tensor, rank: int) -> tuple[LoRAPart, float]:
    """The nearest change of this rank, and its relative error."""
    rank = min(rank, *whole.shape)
    u, s, v = torch.linalg.svd(whole, full_matrices=False)
    root = s[:rank].sqrt()
    part = LoRAPart(root[:, None] * v[:rank], u[:, :rank] * root, scaling=1.0)
    size = whole.norm().item()
    return part, (s[rank:].norm().item() / size if size else 0.0)
