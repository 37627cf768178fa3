"""Matmuls with weights that stay: x to W x + b.

Where a CPU has matrix units for bfloat16, its library reorders a weight into the blocks that the matrix units read
at every call; for the few rows of a decoding step that costs as much as the product. Here it is done once.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional

from tunescope import peak_memory
from tunescope.base import Base

Product = Callable[[torch.Tensor], torch.Tensor]


def packs(base: Base) -> bool:
    """Whether weights are to be kept in blocks: it takes their memory a second time, and pays in bfloat16 only."""
    if base.device.type != "cpu" or base.dtype != torch.bfloat16 or base.quantization is not None:
        return False
    return torch.ops.mkldnn._is_mkldnn_bf16_supported() and peak_memory.available_mb() * 1e6 > 4 * base.parameters


def product(weight: torch.Tensor, bias: torch.Tensor | None, pack: bool) -> Product:
    """The product with ``weight`` [out, in] and ``bias`` [out]."""
    if not pack:
        return lambda x: functional.linear(x, weight, bias)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, None)
    multiply = torch.ops.mkldnn._linear_pointwise
    return lambda x: multiply(x, packed, bias, "none", [], "")
