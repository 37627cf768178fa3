"""The four things a parameter-efficient method can do to a row: the vocabulary every such method compiles to.

=============  ==================================================  =====================================
``SoftPrompt`` virtual tokens take the place of negative token ids  prompt tuning, p-tuning
``Scale``      an activation is multiplied, feature by feature      IA3
``LowRank``    B(A x) is added to a linear map's output             LoRA, DoRA
``Bottleneck`` U act(D y) is added to what a block returns          adapters
=============  ==================================================  =====================================

Each is a small module holding its own tensors in float32 and computing in the precision of the activation it meets.
Each leaves the base's output as it was, bit for bit, at its identity.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional

from tunescope.base.sites import Site
from tunescope.methods.low_rank_terms import Term

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "relu": functional.relu,
    "gelu": functional.gelu,
    "silu": functional.silu,
    "tanh": torch.tanh,
}


class Effect(nn.Module):
    """What happens at one site.

    Attributes:
        kind: its name in artifacts.
        where: the side of the module it acts on, ``output`` or ``input``; or ``head`` for an effect that reads hidden
            states beside the vocabulary head and changes none (see ``objectives.heads``).
        learning_rate: of its own; None for the method's.
        generator: of what it draws while it is trained (dropout); None for torch's own.
    """

    kind: ClassVar[str]
    where: str = "output"
    learning_rate: ClassVar[float | None] = None
    generator: torch.Generator | None = None

    def identity(self, parameter: str) -> torch.Tensor:
        """What a parameter is where the effect changes nothing, as the parameter or broadcast to it: zero for most.

        Weight decay pulls there. Virtual tokens have no such value; theirs is zero, as for any embedding.

        Args:
            parameter: its name in the effect, for example ``magnitude``.
        """
        return torch.zeros_like(self.get_parameter(parameter))

    def finished(self) -> Effect:
        """What is kept when training ends; itself, unless training needs more than serving."""
        return self


class SoftPrompt(Effect):
    """Virtual tokens: rows of a table [virtual_tokens, hidden] take the place of the embeddings of negative ids.

    Token id -1 - i stands for row i, so virtual tokens can stand anywhere in a text and travel as ordinary ids.
    """

    kind = "prefix"
    where = "embedding"

    def __init__(self, rows: torch.Tensor) -> None:
        super().__init__()
        self.embeddings = nn.Parameter(rows.detach().float().clone())

    def table(self) -> torch.Tensor:
        """[virtual_tokens, hidden], what the virtual tokens are now."""
        return self.embeddings


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
        self._site = (site,)  # in a tuple: the base's module is not a child of this one
        if dora:
            self.magnitude = nn.Parameter(self._length())

    def initialize(self, generator: torch.Generator) -> None:
        """A uniform as in LoRA's reference code (Kaiming with √5: bound 1/√in), B zero: no effect at the start."""
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5), generator=generator)
        nn.init.zeros_(self.B)

    def identity(self, parameter: str) -> torch.Tensor:
        """The length of the base's own rows for DoRA's magnitude, zero for A and B."""
        return self._length() if parameter == "magnitude" else super().identity(parameter)

    @property
    def bias(self) -> torch.Tensor | None:
        """The base's bias at its site, [out], which DoRA adds after its re-scaling."""
        return self._site[0].bias

    def _length(self) -> torch.Tensor:
        """Length of each output row of W, [out]."""
        return self._site[0].weight.detach().float().norm(dim=1)

    def delta_weight(self) -> torch.Tensor:
        """What this adds to the weight, scaling · B A, as [out, in] in float32."""
        return self.scaling * (self.B.float() @ self.A.float())

    def direction_norm(self) -> torch.Tensor:
        """Length of each output row of W + scaling·BA, [out], without a gradient."""
        with torch.no_grad():
            return (self._site[0].weight.float() + self.delta_weight()).norm(dim=1)

    @property
    def adds_only(self) -> bool:
        """Whether it is scaling · B A x and nothing else: no magnitude, and no dropout of x now."""
        return self.magnitude is None and not (self.dropout and self.training)

    def term(self, rows: slice | None = None, length: int | None = None) -> Term:
        """What it adds to a part of a batch, where it adds only."""
        return Term(self.A, self.B * self.scaling, rows, length)

    def forward(self, given: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """Apply to a site's input [..., in] and output [..., out]; ``add_terms`` does the same faster."""
        dropped = self._dropped(given)
        low = functional.linear(dropped, self.A.to(given.dtype))
        added = functional.linear(low, (self.B * self.scaling).to(given.dtype))
        if self.magnitude is None:
            return output + added
        straight = output if self.bias is None else output - self.bias
        if self.dropout and self.training:  # the paper's W x meets the same dropped input as B A x
            straight = straight + functional.linear(dropped - given, self._site[0].weight)
        stretch = self.magnitude / self.direction_norm()
        # Written as a change to the output, so that a stretch of one and no B A x leave it bit for bit.
        return output + (stretch - 1).to(given.dtype) * straight + stretch.to(given.dtype) * added

    def _dropped(self, given: torch.Tensor) -> torch.Tensor:
        """Dropout of the input, from this effect's own generator."""
        if not (self.dropout and self.training):
            return given
        kept = torch.empty_like(given).bernoulli_(1 - self.dropout, generator=self.generator)
        return given * kept / (1 - self.dropout)


class Scale(Effect):
    """l ⊙ y on a linear map's output, or W (l ⊙ x) on its input; ``vector`` [features] begins as ones.

    Multiplied in float32: near one, bfloat16 cannot tell 1.003 from 1, and what was learned would be rounded away.
    """

    kind = "scale"

    def __init__(self, site: Site, where: str) -> None:
        super().__init__()
        self.where = where
        self.vector = nn.Parameter(torch.ones(site.in_features if where == "input" else site.out_features))

    def identity(self, parameter: str) -> torch.Tensor:
        """One: a scale of zero would cut the activation off."""
        return torch.ones_like(self.get_parameter(parameter))

    def forward(self, given: torch.Tensor, output: torch.Tensor | None = None) -> torch.Tensor:
        """Apply to a site's input, or to its output when one is given."""
        scaled = given if output is None else output
        return (scaled * self.vector).to(scaled.dtype)


class Bottleneck(Effect):
    """y + U act(D y + b) + c on what a block returns, before the residual connection adds it.

    Shapes: ``down`` D [bottleneck, hidden] and b [bottleneck], ``up`` U [hidden, bottleneck] and c [hidden].
    U and c begin as zero.
    """

    kind = "bottleneck"

    def __init__(self, site: Site, bottleneck: int, activation: str) -> None:
        super().__init__()
        self.down = nn.Linear(site.out_features, bottleneck)
        self.up = nn.Linear(bottleneck, site.out_features)
        self.activation = ACTIVATIONS[activation]

    def initialize(self, generator: torch.Generator) -> None:
        """D uniform with bound 1/√hidden as LoRA's A, everything else zero: no effect at the start."""
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5), generator=generator)
        for tensor in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(tensor)

    def forward(self, given: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """Apply to a block's output [..., hidden]; its input is not needed."""
        dtype = output.dtype
        low = functional.linear(output, self.down.weight.to(dtype), self.down.bias.to(dtype))
        return output + functional.linear(self.activation(low), self.up.weight.to(dtype), self.up.bias.to(dtype))
