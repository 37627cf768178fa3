"""Linear position biases (ALiBi: Bloom, some Falcons) for texts that share a prefix.

Such a model takes no position ids: it counts the positions of keys from a mask [batch, keys]. Our masks are
[batch, 1, queries, keys], and a key's position is not its index, so the positions are kept beside each mask and looked
up where the model builds its biases.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.weak import WeakTensorKeyDictionary

from tunescope.errors import BaseModelError

_BUILDER = "build_alibi_tensor"
_positions: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def prepare(model: Any) -> bool:
    """Have a model with linear biases take our masks; False for a model that takes position ids instead.

    Raises:
        BaseModelError: its positions follow from the order of the tokens, and nothing can say otherwise.
    """
    config = model.config.get_text_config()
    module = sys.modules[type(model).__module__]
    build = getattr(module, _BUILDER, None)
    if build is not None and (config.model_type == "bloom" or getattr(config, "alibi", False)):
        if not hasattr(build, "__wrapped__"):
            setattr(module, _BUILDER, _with_positions(build))
        return True
    if "position_ids" in inspect.signature(type(model).forward).parameters:
        return False
    raise BaseModelError(
        f"A {config.model_type!r} model counts positions itself, so texts that share a prefix cannot be computed in "
        "one pass, as evaluation, preferences and serving do. Take a base that has position ids, or Bloom or Falcon."
    )


def remember(mask: torch.Tensor, positions: torch.Tensor) -> None:
    """Note the ``positions`` [batch, keys] of the keys that ``mask`` [batch, 1, queries, keys] is about."""
    _positions[mask] = positions


def _with_positions(build: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    @functools.wraps(build)
    def built(attention_mask: torch.Tensor, num_heads: int, dtype: torch.dtype) -> torch.Tensor:
        if attention_mask.ndim == 2:
            return build(attention_mask, num_heads, dtype)
        positions = _positions[attention_mask]
        # The biases of positions 0, 1, 2 ... as the model computes them, and of those the ones that are wanted.
        whole = build(positions.new_ones(1, int(positions.max()) + 1), num_heads, dtype)[:, 0]
        return whole[:, positions].transpose(0, 1).reshape(-1, 1, positions.shape[1])

    return built
