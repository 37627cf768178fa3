"""Bases whose linear maps are kept in 4 or 8 bits: a quarter or half of bfloat16's memory.

A base's name says so: ``smollm2-135m:nf4``. What is quantized are the linear maps that ``sites`` names; embeddings,
norms, biases and the vocabulary head stay as they are. They are frozen, and everything that is trained beside them is
exact, as in QLoRA (Dettmers et al. 2023, arXiv:2305.14314). A weight is written out again for each product, forward and
backward, and never kept, so training saves as much as it does at rest.

=========  =======================================================================================================
``nf4``    4 bits: NormalFloat (section 3 of the paper), a float32 scale for every 64 weights, by bitsandbytes
``int8``   8 bits: whole numbers from -127 to 127, a float32 scale for each output
=========  =======================================================================================================

Weights are quantized on the CPU, from the precision they are stored in, so that they are the same numbers on every
device, whatever precision computes.
"""

from __future__ import annotations

import functools
import logging
import sys
from importlib.util import find_spec
from typing import Any, Literal, Protocol, get_args

import torch
from torch import nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from tunescope.base.sites import LINEAR_SITES, Sites
from tunescope.errors import BaseModelError

Quantization = Literal["nf4", "int8"]
KINDS: tuple[Quantization, ...] = get_args(Quantization)
_BLOCK = 64  # weights that share a scale in nf4: the paper's
_Shape = tuple[int, int]
_Factors = tuple[torch.Tensor, torch.Tensor | None]


def split_name(name: str) -> tuple[str, Quantization | None]:
    """``smollm2-135m:nf4`` to ``smollm2-135m`` and ``nf4``; a name without the ending has None."""
    before, mark, kind = name.rpartition(":")
    return (before, kind) if mark and kind in KINDS else (name, None)


class QuantizedLinear(nn.Linear):
    """A frozen linear map in few bits. ``weight`` writes it out, in the precision that computes.

    Args:
        linear: whose weight [out, in] is quantized; its bias is taken over.
        kind: how.
    """

    def __init__(self, linear: nn.Linear, kind: Quantization) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.codec, self.dtype = _CODECS[kind], linear.weight.dtype
        weight = linear.weight.detach()
        packed, scales = self.codec.pack(weight if weight.is_meta else weight.cpu().float())
        self.packed, self.scales = nn.Buffer(packed), nn.Buffer(scales)
        self.bias = linear.bias

    @property
    def weight(self) -> torch.Tensor:  # type: ignore[override]
        """[out, in], a new tensor at every call."""
        matrix, scale = self.factors()
        return matrix if scale is None else (matrix * scale[:, None]).to(matrix.dtype)

    def factors(self) -> _Factors:
        """A matrix [out, in], and what multiplies its outputs, [out] in float32, or None."""
        return self.codec.unpack(self.packed, self.scales, (self.out_features, self.in_features), self.dtype)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """[..., in] to [..., out]."""
        product: torch.Tensor = _Product.apply(input, self)
        return product


class _Product(torch.autograd.Function):
    """W x + b, keeping neither W nor x: W is frozen, and written out anew for x's gradient."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, linear: QuantizedLinear) -> torch.Tensor:
        ctx.linear = linear
        matrix, scale = linear.factors()
        if scale is None:
            return functional.linear(x, matrix, linear.bias)
        product = (functional.linear(x, matrix) * scale).to(x.dtype)
        return product if linear.bias is None else product.add_(linear.bias)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        matrix, scale = ctx.linear.factors()
        grad = grads[0] if scale is None else (grads[0] * scale).to(matrix.dtype)
        return grad @ matrix, None


def quantize(model: Any, kind: Quantization) -> None:
    """Quantize a model's linear maps in place, one after the other. One without weights (``meta``) is only sketched.

    Raises:
        BaseModelError: an architecture that is not known or whose linear maps are not torch's; no bitsandbytes.
    """
    if kind == "nf4" and model.device.type != "meta" and find_spec("bitsandbytes") is None:
        raise BaseModelError("Bases in nf4 need bitsandbytes: pip install 'tunescope[quantize]'. int8 needs nothing.")
    for path, module in _linears(model).items():
        if isinstance(module, Conv1D):
            raise BaseModelError(
                f"{model.config.model_type} keeps its linear maps in a layout of its own (Conv1D), which is not "
                f"quantized. Load it without :{kind}."
            )
        _replace(model, path, QuantizedLinear(module, kind))
    for parameter in model.parameters():  # what stays lies in the mapped file, which would stay with it
        parameter.data = parameter.data.clone()


def write_out(model: Any) -> Any:
    """Give a model plain linear maps again, in place, with the weights that its quantized ones stand for."""
    for path, module in list(model.named_modules()):
        if isinstance(module, QuantizedLinear):
            plain = nn.Linear(module.in_features, module.out_features, bias=False, device="meta")
            plain.weight, plain.bias = nn.Parameter(module.weight, requires_grad=False), module.bias
            _replace(model, path, plain)
    return model


def set_dtype(model: Any, dtype: torch.dtype) -> None:
    """The precision that quantized weights are written out in."""
    for module in model.modules():
        if isinstance(module, QuantizedLinear):
            module.dtype = dtype


def quantized_parameters(model: Any) -> int:
    """How many weights are kept in few bits, and so are no parameters of torch's."""
    return sum(m.in_features * m.out_features for m in model.modules() if isinstance(m, QuantizedLinear))


def _linears(model: Any) -> dict[str, Any]:
    """The linear maps of all sites by path; fused ones once."""
    return {site.path: site.module for site in Sites(model).all if site.name in LINEAR_SITES}


def _replace(model: Any, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module.eval())


class _Codec(Protocol):
    """Weights to few bits, and back."""

    def pack(self, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[out, in] in float32 to codes and scales."""

    def unpack(self, packed: torch.Tensor, scales: torch.Tensor, shape: _Shape, dtype: torch.dtype) -> _Factors:
        """The weight that they stand for, see ``QuantizedLinear.factors``."""


class _NF4:
    # Given as rows of one block each: of rows that are no whole number of blocks, bitsandbytes 0.50 takes the wrong
    # scales on a CPU.

    def pack(self, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        blocks = -(-weight.numel() // _BLOCK)
        if weight.is_meta:
            codes = weight.new_empty(blocks * _BLOCK // 2, 1, dtype=torch.uint8)
            return codes, weight.new_empty(blocks, dtype=torch.float32)
        rows = functional.pad(weight.flatten(), (0, blocks * _BLOCK - weight.numel())).view(blocks, _BLOCK)
        packed, state = _bitsandbytes().quantize_4bit(rows, blocksize=_BLOCK, quant_type="nf4")
        return packed, state.absmax

    def unpack(self, packed: torch.Tensor, scales: torch.Tensor, shape: _Shape, dtype: torch.dtype) -> _Factors:
        if packed.is_meta:
            return torch.empty(shape, dtype=dtype, device=packed.device), None
        library, rows = _bitsandbytes(), (len(scales), _BLOCK)
        state = library.QuantState(scales, shape=rows, dtype=dtype, blocksize=_BLOCK, quant_type="nf4")
        weight = library.dequantize_4bit(packed, state)
        return weight.flatten()[: shape[0] * shape[1]].view(shape), None


class _Int8:
    def pack(self, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scales = weight.abs().amax(dim=1) / 127
        return (weight / scales[:, None].clamp(min=1e-30)).round().to(torch.int8), scales

    def unpack(self, packed: torch.Tensor, scales: torch.Tensor, shape: _Shape, dtype: torch.dtype) -> _Factors:
        return packed.to(dtype), scales  # whole numbers up to 127 are exact in bfloat16


@functools.cache
def _bitsandbytes() -> Any:
    """The library's functions. Where the package ``kernels`` is installed, importing it would fetch code from the hub
    and run it: meanwhile there is no such package."""
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)  # which warns of just that
    kernels = sys.modules.get("kernels")
    sys.modules["kernels"] = None  # type: ignore[assignment]
    try:
        from bitsandbytes import functional as library

        return library
    finally:
        del sys.modules["kernels"]
        if kernels is not None:
            sys.modules["kernels"] = kernels


_CODECS: dict[Quantization, _Codec] = {"nf4": _NF4(), "int8": _Int8()}
