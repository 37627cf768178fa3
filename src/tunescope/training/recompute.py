"""Activation checkpointing (Chen et al. 2016, arXiv:1604.06174): what a layer computed is computed again in the
backward pass, instead of being kept until then. A step keeps one vector a token and layer, and takes about a third more
time.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from tunescope.base import Base
from tunescope.errors import TrainingError
from tunescope.methods import Customization


@contextmanager
def recomputed(base: Base, customizations: Sequence[Customization]) -> Iterator[None]:
    """Within this context the base's layers keep nothing for the backward pass but what they were given.

    What is drawn (dropout) is drawn the same again, so losses and gradients are those without it, bit for bit.

    Args:
        base: that computes. Nothing else may use it meanwhile.
        customizations: that act on it.

    Raises:
        TrainingError: an architecture whose layers cannot.
    """
    layers = [module for module in base.model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise TrainingError(
            f"The layers of {base.name} cannot be computed again: leave --recompute out, and cut steps with "
            "--accumulate to save memory."
        )
    try:
        for layer in layers:
            # Not by transformers' switch: it wants layers in training mode, where some draw dropout of their own.
            layer.forward = functools.partial(_twice, layer.forward, customizations)
        yield
    finally:
        for layer in layers:
            vars(layer).pop("forward", None)


def _twice(forward: Callable[..., Any], customizations: Sequence[Customization], *args: Any, **kwargs: Any) -> Any:
    """A layer's forward pass, which the backward pass calls again."""
    return checkpoint(
        functools.partial(forward, **kwargs),
        *args,
        use_reentrant=False,
        context_fn=lambda: _same_draws(customizations),
    )


def _same_draws(
    customizations: Sequence[Customization],
) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Around a layer's first computation and around its second: the second draws what the first drew.

    torch does this for its own generator; effects have others.
    """
    own = {effect.generator for each in customizations for effect in each.effects.values()}
    generators = [generator for generator in own if generator is not None]
    states = [generator.get_state() for generator in generators]
    return nullcontext(), _from(generators, states)


@contextmanager
def _from(generators: Sequence[torch.Generator], states: Sequence[torch.Tensor]) -> Iterator[None]:
    """Within this context the generators go on from these states, and afterwards from where they were."""
    after = [generator.get_state() for generator in generators]
    for generator, state in zip(generators, states, strict=True):
        generator.set_state(state)
    try:
        yield
    finally:
        for generator, state in zip(generators, after, strict=True):
            generator.set_state(state)
