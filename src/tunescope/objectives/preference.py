"""What objectives over pairs have in common: their rows, their packed batches, and what is reported of them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar, Literal

import torch

from tunescope.base import Base
from tunescope.data.batching import PairBatch, collate_pairs
from tunescope.data.encoding import EncodedPair, Encoder
from tunescope.data.pairs import Pair, is_pairs, repeated, to_pairs
from tunescope.data.reading import Table
from tunescope.errors import DataError
from tunescope.methods import Customized
from tunescope.objectives.forward import target_logprobs
from tunescope.objectives.objective import Objective


class PreferenceObjective(Objective):
    """Learn from pairs which of two completions is better."""

    takes: ClassVar[type[Pair]] = Pair
    example: ClassVar[type] = EncodedPair
    unit: ClassVar[str] = "pairs"
    cut: ClassVar[Literal["middle", "start"]] = "start"

    loss: str
    """A subclass says which there are."""

    @property
    @abstractmethod
    def uses_margins(self) -> bool:
        """Whether the loss wants to know how much better the chosen completions are."""

    @abstractmethod
    def rewards(self, customized: Customized, batch: PairBatch, hidden: torch.Tensor) -> torch.Tensor:
        """What each completion is worth, as [2, pairs], chosen first: σ of the difference is the probability that the
        chosen one is preferred. ``hidden`` is as for ``compute_loss``.
        """

    def rows(
        self, table: Table, pattern: str | None, skip_bad: int, on_note: Callable[[str], None] = lambda note: None
    ) -> list[Pair]:
        """Pairs.

        Raises:
            DataError: also for a template, which pairs have no use for.
        """
        if pattern is not None and is_pairs(table):
            raise DataError(
                f"{table.path} holds pairs, whose prompt stands in a column of its own: leave --template out."
            )
        return to_pairs(table, skip_bad=skip_bad, on_note=on_note)

    def notes(self, rows: Sequence[Pair]) -> list[str]:
        """Repeated pairs, and margins that this loss has no use for."""
        unused = not self.uses_margins and any(pair.margin is not None for pair in rows)
        said = [f"The pairs have margins, which --loss {self.loss} does not use."] if unused else []
        return [*repeated(rows), *said]

    def examples(self, rows: Sequence[Pair], encoder: Encoder) -> list[EncodedPair]:
        """Every pair that fits.

        Raises:
            DataError: a pair without the margin that the loss wants.
        """
        if self.uses_margins and (bare := [pair.number for pair in rows if pair.margin is None]):
            raise DataError(
                f"--loss {self.loss} needs a margin for every pair, and that of line {bare[0]} has none: add a column "
                "margin, or reward_chosen and reward_rejected, or take another loss."
            )
        return encoder.encode_pairs(rows)

    def collate(self, examples: Sequence[EncodedPair]) -> PairBatch:
        """Packed pairs."""
        return collate_pairs(examples)

    def weight(self, batch: PairBatch) -> int:
        """Pairs."""
        return len(batch.rows)

    @staticmethod
    def measured(rewards: torch.Tensor, batch: PairBatch) -> dict[str, torch.Tensor]:
        """What is reported of ``rewards`` [2, pairs], summed over the pairs; lengths in tokens."""
        chosen, rejected = rewards.detach()
        return {
            "rewards/chosen": chosen.sum(),
            "rewards/rejected": rejected.sum(),
            "rewards/margin": (chosen - rejected).sum(),
            "rewards/accuracy": (chosen > rejected).sum(),
            "lengths/chosen": batch.lengths[0].sum(),
            "lengths/rejected": batch.lengths[1].sum(),
        }


def completion_logprobs(base: Base, batch: PairBatch, hidden: torch.Tensor) -> torch.Tensor:
    """Log-probabilities of the completions, stop token included, in nats as [2, pairs] in float32.

    ``hidden`` is what ``packed_hidden`` gives for the batch.
    """
    found = target_logprobs(base, batch.packed, hidden)
    sums = [tokens.sum() for tokens in found.split(batch.packed.lengths.tolist())]
    return torch.stack(sums).view(-1, 2).T
