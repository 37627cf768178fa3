"""Reward models: a number for how good a completion is, learned from pairs (Ouyang et al. 2022, arXiv:2203.02155).

Against the language model, beside the vocabulary head:

    r(x, y) = w · h

with h [hidden] what the vocabulary head would read at the last token of the completion, its stop token, and w [hidden]
in float32. The method says what else is trained: by LoRA the reward model shares the frozen base with everything else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from tunescope.base import Base
from tunescope.data.batching import PairBatch, collate
from tunescope.data.encoding import Encoder
from tunescope.data.packing import by_length
from tunescope.data.rows import Message, Row
from tunescope.errors import DataError
from tunescope.methods import Customized
from tunescope.methods.effects import Effect
from tunescope.objectives import losses
from tunescope.objectives.forward import packed_hidden
from tunescope.objectives.objective import Loss
from tunescope.objectives.preference import PreferenceObjective

HEAD = "head.reward"


class RewardHead(Effect):
    """w · h in float32; ``weight`` w [hidden].

    It begins at zero: every text is worth the same, the loss begins at log 2 whatever the base, and the first step
    turns w from what rejected texts have in common to what chosen ones have. A drawn w would begin as an opinion that
    has to be unlearned.
    """

    kind = "reward"
    where = "head"
    learning_rate = 1e-3

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(hidden_size))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """[..., hidden] in any precision to [...] in float32."""
        return hidden.float() @ self.weight


class Reward(PreferenceObjective):
    """Give chosen completions a higher reward than rejected ones."""

    name: ClassVar[str] = "reward"

    loss: Literal["bradley-terry", "margin", "scaled"] = "bradley-terry"
    """Whether the pairs' margins count: not at all, subtracted from the difference, or as the pairs' weights."""
    centering: float = Field(0.0, ge=0)
    """Weight of (r_chosen + r_rejected)², which keeps rewards near zero. 0.01 is its paper's choice."""

    @property
    def uses_margins(self) -> bool:
        """All but plain Bradley-Terry."""
        return self.loss != "bradley-terry"

    def effects(self, base: Base, generator: torch.Generator) -> dict[str, Effect]:
        """The head."""
        return {HEAD: RewardHead(base.hidden_size)}

    def rewards(self, customized: Customized, batch: PairBatch, hidden: torch.Tensor) -> torch.Tensor:
        """The head's output at the completions' last tokens."""
        return reward_head(customized)(hidden[batch.last])

    def compute_loss(self, customized: Customized, batch: PairBatch, hidden: torch.Tensor) -> Loss:
        """The pairs' losses, summed."""
        rewards = self.rewards(customized, batch, hidden)
        chosen, rejected = rewards
        difference = chosen - rejected
        if self.loss == "scaled":
            found = losses.scaled_bradley_terry_loss(difference, batch.margins)
        else:
            found = losses.bradley_terry_loss(difference, batch.margins if self.loss == "margin" else 0.0)
        if self.centering:
            found = found + self.centering * losses.centering_loss(chosen, rejected)
        return Loss(found.sum(), self.measured(rewards, batch))


def reward_head(customized: Customized) -> Any:
    """The head of a reward model.

    Raises:
        DataError: the customization is none.
    """
    if HEAD not in customized.customization.effects:
        raise DataError("This customization gives no rewards: train one with --objective reward.")
    return customized.customization.effects[HEAD]


def reward_scores(
    customized: Customized,
    prompts: Sequence[str | Sequence[Message]],
    completions: Sequence[str],
    *,
    max_length: int | None = None,
) -> list[float]:
    """How good a reward model finds completions.

    Args:
        customized: trained with the objective ``Reward``.
        prompts: a text or messages for each completion.
        completions: in any order; rewards come in the same one.
        max_length: most tokens of prompt and completion, as in training; longer prompts lose their start.

    Raises:
        DataError: no reward model, or a text of which nothing of the prompt would be left.
    """
    head, base = reward_head(customized), customized.base
    encoder = Encoder(base.tokenizer, customized.template, base.context_length, max_length, cut=Reward.cut)
    rows = [
        Row(({"role": "user", "content": prompt},) if isinstance(prompt, str) else tuple(prompt), completion, number)
        for number, (prompt, completion) in enumerate(zip(prompts, completions, strict=True), start=1)
    ]
    encoded = encoder.encode_all(rows)
    if encoder.dropped_rows:
        raise DataError(
            f"Text {encoder.dropped_rows[0]} of those to score does not fit: its completion leaves no room for the "
            "prompt. Shorten it or raise --max-length."
        )
    rewards = [0.0] * len(rows)
    with torch.inference_mode(), customized.active():
        for indices in by_length([len(example) for example in encoded]):
            batch = collate([encoded[i] for i in indices], ends=True).to(base.device)
            found = head(packed_hidden(base, batch.packed)[batch.packed.last])
            for i, reward in zip(indices, found.tolist(), strict=True):
                rewards[encoded[i].number - 1] = reward
    return rewards
