"""Customizations put together from tensors that were not trained here: imported ones, and merges of several."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from tunescope.base import Base, Sites
from tunescope.data.template import Template
from tunescope.errors import BankError
from tunescope.methods import IA3, Customized, LoRA, at_rest
from tunescope.methods.effects import LowRank

T = TypeVar("T")


@dataclass(frozen=True)
class LoRAPart:
    """The low-rank change of one site: scaling · B A, with DoRA's ``magnitude`` [out] if it has one.

    ``A`` is [rank, in], ``B`` is [out, rank].
    """

    A: torch.Tensor
    B: torch.Tensor
    scaling: float
    magnitude: torch.Tensor | None = None

    @property
    def rank(self) -> int:
        """Inner width of the change."""
        return self.A.shape[0]

    def delta(self) -> torch.Tensor:
        """What it adds to the weight, [out, in] in float32."""
        return self.scaling * (self.B.float() @ self.A.float())


def assemble_lora(
    base: Base, parts: Mapping[str, LoRAPart], template: Template, *, dropout: float = 0.0, rslora: bool = False
) -> Customized:
    """A LoRA with these changes, keyed by site (``3.q``).

    Raises:
        BankError: shapes that do not fit the sites, or DoRA at some sites only.
    """
    plain = [key for key, part in parts.items() if part.magnitude is None]
    if 0 < len(plain) < len(parts):
        raise BankError(f"Some sites have a DoRA magnitude and others ({', '.join(plain[:5])}) have none.")
    ranks = {key: part.rank for key, part in parts.items()}
    # The setting is alpha, from which the scaling follows: alpha / rank, or alpha / √rank.
    alphas = {key: part.scaling * (math.sqrt(part.rank) if rslora else part.rank) for key, part in parts.items()}
    targets, layers = compact(base.sites, set(parts))
    rank, alpha = _commonest(ranks), _commonest(alphas)
    method = LoRA(
        rank=rank,
        alpha=alpha,
        dropout=dropout,
        rslora=rslora,
        dora=not plain,
        targets=targets,
        layers=layers,
        rank_pattern={key: value for key, value in ranks.items() if value != rank},
        alpha_pattern={key: value for key, value in alphas.items() if value != alpha},
    )
    tensors: dict[str, torch.Tensor] = {}
    for key, part in parts.items():
        tensors |= {f"{key}.low_rank.A": part.A, f"{key}.low_rank.B": part.B}
        if part.magnitude is not None:
            tensors[f"{key}.low_rank.magnitude"] = part.magnitude
    customized = at_rest(base, method, template)
    customized.customization.load_tensors(tensors)
    return customized


def assemble_ia3(
    base: Base, outputs: Mapping[str, torch.Tensor], inputs: Mapping[str, torch.Tensor], template: Template
) -> Customized:
    """An IA3 with these vectors, keyed by the site (``3.k``) whose output or input they scale.

    Raises:
        BankError: sizes that do not fit the sites.
    """
    targets, layers = compact(base.sites, {*outputs, *inputs})
    names = {base.sites[key].name for key in inputs}
    mixed = names & {base.sites[key].name for key in outputs}
    method = IA3(
        targets=targets,
        layers=layers,
        feedforward=tuple(sorted(inputs)) if mixed else tuple(sorted(names)),
    )
    customized = at_rest(base, method, template)
    customized.customization.load_tensors({f"{key}.scale.vector": v for key, v in {**outputs, **inputs}.items()})
    return customized


def compact(sites: Sites, keys: set[str]) -> tuple[tuple[str, ...], tuple[int, ...] | None]:
    """``targets`` and ``layers`` that name exactly these sites: by name where that is possible, else one by one."""
    chosen = [site for site in sites.all if site.key in keys]
    names, layers = dict.fromkeys(site.name for site in chosen), dict.fromkeys(site.layer for site in chosen)
    if len(chosen) == len(names) * len(layers):
        return tuple(names), tuple(layers) if len(layers) < sites.layers else None
    return tuple(site.key for site in chosen), None


def lora_parts(customized: Customized) -> dict[str, LoRAPart]:
    """The low-rank changes of a LoRA by site, in float32 on the CPU.

    Those of LoRAs that it starts from are in them, in one product: exactly, but for DoRA, which has no such form.

    Raises:
        BankError: it starts from something else than LoRAs without DoRA.
    """
    found: dict[str, LoRAPart] = {}
    chain = [layer for layer in customized.customization.layers if layer.effects]
    for layer in chain:
        for key, effect in layer.effects.items():
            magnitude = effect.magnitude if isinstance(effect, LowRank) else None
            if len(chain) > 1 and effect.where != "head" and (not isinstance(effect, LowRank) or magnitude is not None):
                raise BankError(
                    f"This {customized.method.name} and what it starts from are not one LoRA. Write them into the "
                    "weights with --to transformers, or serve the entry as it is."
                )
            if isinstance(effect, LowRank):
                site = key.rpartition(".")[0]
                own = LoRAPart(
                    effect.A.detach().cpu(),
                    effect.B.detach().cpu(),
                    effect.scaling,
                    None if magnitude is None else magnitude.detach().cpu(),
                )
                found[site] = concatenated([(found[site], 1.0), (own, 1.0)]) if site in found else own
    return found


def concatenated(own: Sequence[tuple[LoRAPart, float]]) -> LoRAPart:
    """Σ weight · scaling · B A of parts with their weights as one product, exactly."""
    A = torch.cat([part.A for part, _ in own])
    B = torch.cat([weight * part.scaling * part.B for part, weight in own], dim=1)
    return LoRAPart(A, B, scaling=1.0)


def _commonest(values: Mapping[str, T]) -> T:
    return Counter(values.values()).most_common(1)[0][0]
