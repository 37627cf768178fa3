"""Low-rank terms that are added in place: the same sums and gradients as written out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional

from tunescope.methods.low_rank_terms import Term, add_terms

PARTS: dict[str, list[tuple[slice | None, int | None]]] = {
    "alone": [(None, None)],
    "a chain of two": [(None, None), (None, None)],
    "side by side": [(slice(0, 2), 5), (slice(2, 5), 5)],
    "of other lengths": [(slice(0, 2), 3), (slice(2, 5), 5), (slice(0, 2), 3)],
    "some rows without": [(slice(2, 5), 4)],
}


def written_out(given: torch.Tensor, output: torch.Tensor, terms: list[Term]) -> torch.Tensor:
    """The same, a tensor a term."""
    for term in terms:
        added = torch.zeros_like(output)
        part = added if term.rows is None else added[term.rows, : term.length]
        part += functional.linear(functional.linear(term.of(given), term.A), term.B)
        output = output + added
    return output


@pytest.mark.parametrize("name", PARTS)
def test_sums_and_gradients(name: str) -> None:
    generator = torch.Generator().manual_seed(0)

    def some(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64, requires_grad=True)

    weight, given = some(7, 6), some(5, 5, 6)
    matrices = [(some(2 + i, 6), some(7, 2 + i)) for i, _ in enumerate(PARTS[name])]

    def found(add: Any) -> list[torch.Tensor]:
        terms = [Term(A, B, *part) for (A, B), part in zip(matrices, PARTS[name], strict=True)]
        result = add(given, functional.linear(given, weight), terms)
        leaves = [weight, given, *(each for pair in matrices for each in pair)]
        return [result, *torch.autograd.grad(result.square().sum(), leaves)]

    for ours, theirs in zip(found(add_terms), found(written_out), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-12, atol=1e-12)


def test_an_input_without_a_gradient_gets_none_and_b_of_zeros_changes_no_bit() -> None:
    given, A, B = torch.randn(2, 3, 4), torch.randn(2, 4, requires_grad=True), torch.zeros(5, 2, requires_grad=True)
    plain = functional.linear(given, torch.ones(5, 4)).bfloat16()
    result = add_terms(given.bfloat16(), plain.clone(), [Term(A, B)])
    assert torch.equal(result, plain)
    result.sum().backward()
    assert given.grad is None and B.grad is not None and B.grad.abs().sum() > 0
