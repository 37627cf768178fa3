"""From packed texts to what objectives ask of the base: hidden states and log-probabilities."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from tunescope.base import Base
from tunescope.data.packing import Packed, by_length
from tunescope.team import this_team

_T = TypeVar("_T")


def packed_hidden(base: Base, packed: Packed) -> torch.Tensor:
    """What the base's head reads at every position, as [groups · length, hidden]."""
    # Groups of one text are padded on the right, where causal attention does not look.
    mask = base.masks(packed.branch, packed.position) if packed.branched else None
    return base.hidden(packed.input_ids, mask, position_ids=packed.position).flatten(0, 1)


def target_logprobs(base: Base, packed: Packed, hidden: torch.Tensor) -> torch.Tensor:
    """Log-probability of each target, in nats as [targets] in float32; ``hidden`` as ``packed_hidden`` gives it."""
    return base.logprobs(hidden[packed.predictors], packed.targets)


def target_logprobs_and_entropy(base: Base, packed: Packed, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``target_logprobs``, and the entropy of what is predicted in each target's place, in nats; both [targets]."""
    return base.logprobs_and_entropy(hidden[packed.predictors], packed.targets)


def in_passes(lengths: Sequence[int], of_pass: Callable[[Sequence[int]], list[_T]]) -> list[_T]:
    """Something of every text, computed in passes of similar length, of which each process of a team does its share.

    Args:
        lengths: of the texts, in tokens.
        of_pass: what it is for the texts with these indices, as JSON has it.
    """
    passes = list(by_length(lengths))
    done = this_team().mapped(passes, lambda own: [of_pass(indices) for indices in own])
    found = dict(zip((i for indices in passes for i in indices), (each for own in done for each in own), strict=True))
    return [found[i] for i in range(len(lengths))]
