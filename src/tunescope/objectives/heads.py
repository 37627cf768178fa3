"""Linear heads on hidden states, beside the vocabulary head: rewards, values, attributes.

    W h + b

with h [hidden] what the vocabulary head reads, and W [outputs, hidden] and b [outputs] in float32. A reward is one
number at a text's last token, a value one at each position, attributes are several at the last token. The method says
what else is trained: by LoRA a reward model shares the frozen base with everything else.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from tunescope.methods.effects import Effect


class Head(Effect):
    """W h + b in float32: ``weight`` W [outputs, hidden], ``bias`` b [outputs] or None.

    The weight of a head with a single output is kept as [hidden]. Both begin at zero: every text has the same reward,
    and the first step turns W from what rejected texts have in common to what chosen ones have. A drawn W would begin
    as an opinion that has to be unlearned.

    Args:
        hidden_size: of the base.
        outputs: how many numbers it gives.
        bias: whether b is added. A reward needs none: only differences of rewards count.
    """

    kind = "head"
    where = "head"
    learning_rate = 1e-3

    def __init__(self, hidden_size: int, outputs: int = 1, *, bias: bool = False) -> None:
        super().__init__()
        self.outputs = outputs
        self.weight = nn.Parameter(torch.zeros((outputs, hidden_size) if outputs > 1 else hidden_size))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """[..., hidden] in any precision to [..., outputs] in float32."""
        return functional.linear(hidden.float(), self.weight.view(self.outputs, -1), self.bias)

    def at_rest(self) -> Head:
        """A frozen copy: training may go on without changing it."""
        copied = Head(self.weight.shape[-1], self.outputs, bias=self.bias is not None)
        copied.load_state_dict(self.state_dict())
        return copied.requires_grad_(False)
