"""The four things a parameter-efficient method can do to a row: the vocabulary every such method compiles to.

=============  ==================================================  =====================================
``Prefix``     virtual tokens take the place of negative token ids  prompt tuning, p-tuning
``Scale``      an activation is multiplied, feature by feature      IA3
``LowRank``    B(A x) is added to a linear map's output             LoRA, DoRA
``Bottleneck`` U act(D y) is added to what a block returns          adapters
=============  ==================================================  =====================================

Each is a small module holding its own tensors in float32 and computing in the precision of the activation it meets.
Each leaves the base's output as it was, bit for bit, at its identity.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from tunescope.base.sites import Site


class Effect(nn.Module):
    """What happens at one site. ``kind`` is its name in artifacts, ``where`` the side of the module it acts on."""

    kind: ClassVar[str]
    where: ClassVar[str] = "output"


class Prefix(Effect):
    """Virtual tokens: rows of a table [virtual_tokens, hidden] take the place of the embeddings of negative ids.

    Token id -1 - i stands for row i, so virtual tokens can stand anywhere in a text and travel as ordinary ids.
    """

    kind = "prefix"
    where = "embedding"

    def __init__(self, virtual_tokens: int, hidden_size: int) -> None:
        super().__init__()
        self.embeddings = nn.Parameter(torch.empty(virtual_tokens, hidden_size))

    def table(self) -> torch.Tensor:
        """[virtual_tokens, hidden], what the virtual tokens are now."""
        return self.embeddings

    def attach(self, embedding: nn.Module) -> list[RemovableHandle]:
        """Have the embedding module answer negative ids from the table."""
        virtual: list[torch.Tensor] = []

        def before(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            virtual[:] = [args[0]]
            return (args[0].clamp(min=0), *args[1:])

        def after(_module: nn.Module, _args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
            ids = virtual.pop()
            mask = ids < 0
            if not mask.any():
                return output
            rows = self.table().to(output.dtype)[-1 - ids[mask]]
            return output.masked_scatter(mask[..., None], rows)

        return [embedding.register_forward_pre_hook(before), embedding.register_forward_hook(after)]


class LowRank(Effect):
    """y + scaling · B A x, and DoRA's re-scaling of the sum when it has a magnitude.

    Shapes: ``A`` [rank, in], ``B`` [out, rank], ``magnitude`` [out].

    DoRA (Liu et al. 2024, arXiv:2402.09353, eq. 5) decomposes W + scaling·BA into a direction and a learned length of
    each output row. The length of the direction is detached from the gradient (section 4.3), and the base's bias is
    added after.
    """

    kind = "low_rank"

    def __init__(
        self, site: Site, rank: int, alpha: float, *, rank_stabilized: bool, dropout: float, dora: bool
    ) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.empty(rank, site.in_features))
        self.B = nn.Parameter(torch.zeros(site.out_features, rank))
        self.scaling = alpha / math.sqrt(rank) if rank_stabilized else alpha / rank
        self.dropout = dropout
        self.magnitude: nn.Parameter | None = None
        if dora:
            self.magnitude = nn.Parameter(site.weight.detach().float().norm(dim=1))
        self._site = (site,)  # in a tuple: the base's module is not a child of this one

    def initialize(self, generator: torch.Generator) -> None:
        """A uniform as in LoRA's reference code (Kaiming with √5: bound 1/√in), B zero: no effect at the start."""
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5), generator=generator)
        nn.init.zeros_(self.B)

    def delta_weight(self) -> torch.Tensor:
        """What this adds to the weight, scaling · B A, as [out, in] in float32."""
        return self.scaling * (self.B.float() @ self.A.float())

    def direction_norm(self) -> torch.Tensor:
        """Length of each output row of W + scaling·BA, [out], without a gradient."""
        with torch.no_grad():
            return (self._site[0].weight.float() + self.delta_weight()).norm(dim=1)

    def forward(self, given: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """Apply to a site's input [..., in] and output [..., out]."""
        dropped = functional.dropout(given, self.dropout, self.training)
        low = functional.linear(dropped, self.A.to(given.dtype))
        added = functional.linear(low, (self.B * self.scaling).to(given.dtype))
        if self.magnitude is None:
            return output + added
        bias = self._site[0].bias
        straight = output if bias is None else output - bias
        if self.dropout and self.training:  # the paper's W x meets the same dropped input as B A x
            straight = functional.linear(dropped, self._site[0].weight)
        stretch = self.magnitude / self.direction_norm()
        # Written as a change to the output, so that a stretch of one and no B A x leave it bit for bit.
        return output + (stretch - 1).to(given.dtype) * straight + stretch.to(given.dtype) * added
