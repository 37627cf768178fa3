"""The low-rank terms of a site, added to its output in place: what LoRA costs beside the frozen product is its matmuls.

    y += scaling · B A x        for each term on its own rows of x and y

Written as sums of tensors the same would copy y once a term forward, and pad and add a gradient of x's size for each
part of the batch backward. Here the gradient of y passes as it is, and that of x is written once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Term:
    """scaling · B A x on a part of a batch.

    Attributes:
        A: [rank, in] in float32.
        B: [out, rank], scaled, in float32.
        rows: the batch's rows; None for all of the batch.
        length: of each row the first so many positions.
    """

    A: torch.Tensor
    B: torch.Tensor
    rows: slice | None = None
    length: int | None = None

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """Its part of [rows, length, features]; of any shape where it has all of the batch."""
        return tensor if self.rows is None else tensor[self.rows, : self.length]


def add_terms(given: torch.Tensor, output: torch.Tensor, terms: Sequence[Term]) -> torch.Tensor:
    """``output``, changed in place: nothing may have kept it, as nothing keeps what a linear map has just returned.

    Args:
        given: [..., in], what the linear map read.
        output: [..., out], what it returned.
        terms: in any order; several may be of the same part.
    """
    matrices = [matrix.to(given.dtype) for term in terms for matrix in (term.A, term.B)]
    parts = [(term.rows, term.length) for term in terms]
    added: torch.Tensor = _AddTerms.apply(output, given, parts, *matrices)
    return added


class _AddTerms(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, output: torch.Tensor, given: torch.Tensor, parts: list[Any], *matrices: torch.Tensor
    ) -> torch.Tensor:
        lows = []
        for term in _terms(parts, matrices):
            low = term.of(given) @ term.A.T
            _add_product(term.of(output), low, term.B.T)
            lows.append(low)
        ctx.parts = parts
        ctx.save_for_backward(given, *lows, *matrices)
        ctx.mark_dirty(output)
        return output

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        given, *saved = ctx.saved_tensors
        lows, matrices = saved[: len(ctx.parts)], saved[len(ctx.parts) :]
        of_given = torch.zeros_like(given) if ctx.needs_input_grad[1] else None
        found: list[torch.Tensor] = []
        for term, low in zip(_terms(ctx.parts, matrices), lows, strict=True):
            own = term.of(grad)
            of_low = own @ term.B
            flat = of_low.reshape(-1, of_low.shape[-1])
            found.append(flat.T @ _flat(term.of(given)))
            found.append(_flat(own).T @ _flat(low))
            if of_given is not None:
                _add_product(term.of(of_given), of_low, term.A)
        return grad, of_given, None, *found


def _terms(parts: Sequence[Any], matrices: Sequence[torch.Tensor]) -> list[Term]:
    return [Term(A, B, *part) for part, A, B in zip(parts, matrices[0::2], matrices[1::2], strict=True)]


def _flat(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.reshape(-1, tensor.shape[-1])


def _add_product(tensor: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """tensor += left @ right, in place."""
    if tensor.is_contiguous():
        tensor.view(-1, tensor.shape[-1]).addmm_(_flat(left), right)
    else:
        tensor += left @ right
