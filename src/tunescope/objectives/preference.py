"""What objectives over pairs and rankings have in common: rows, packed batches, and what is reported.

A ranking counts as the mean over its pairs: every two completions of different rank are compared, and each prompt
counts once however many completions it has (Ouyang et al. 2022, arXiv:2203.02155, eq. 1, where all comparisons of a
prompt are one element of the batch).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from types import UnionType
from typing import ClassVar, Literal

import torch

from tunescope.base import Base
from tunescope.data.batching import PairBatch, collate_pairs
from tunescope.data.encoding import EncodedPreference, Encoder
from tunescope.data.pairs import Pair
from tunescope.data.rankings import Preference, Ranking, is_preferences, repeated, to_preferences
from tunescope.data.reading import Table
from tunescope.errors import DataError
from tunescope.methods import Customized
from tunescope.objectives.forward import target_logprobs
from tunescope.objectives.objective import Objective


class PreferenceObjective(Objective):
    """Learn from pairs, or from ranked responses, which of two completions is better."""

    takes: ClassVar[UnionType] = Preference
    example: ClassVar[UnionType] = EncodedPreference
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
        """What each completion is worth, as [completions]: σ of the difference of two is the probability that the first
        one is preferred. ``hidden`` is as for ``compute_loss``.
        """

    def rows(
        self, table: Table, pattern: str | None, skip_bad: int, on_note: Callable[[str], None] = lambda note: None
    ) -> list[Pair] | list[Ranking]:
        """Pairs, or ranked responses.

        Raises:
            DataError: also for a template, which they have no use for.
        """
        if pattern is not None and is_preferences(table):
            raise DataError(
                f"{table.path} holds completions that are compared, whose prompt stands in a column of its own: leave "
                "--template out."
            )
        return to_preferences(table, skip_bad=skip_bad, on_note=on_note)

    def notes(self, rows: Sequence[Preference]) -> list[str]:
        """Repeated rows, and margins that this loss has no use for."""
        unused = not self.uses_margins and any(isinstance(row, Pair) and row.margin is not None for row in rows)
        said = [f"The pairs have margins, which --loss {self.loss} does not use."] if unused else []
        return [*repeated(rows), *said]

    def examples(self, rows: Sequence[Preference], encoder: Encoder) -> list[EncodedPreference]:
        """Every row that fits.

        Raises:
            DataError: a row without the margin that the loss wants.
        """
        if self.uses_margins:
            for row in rows:
                if isinstance(row, Ranking):
                    raise DataError(
                        f"--loss {self.loss} needs a margin for every pair, and line {row.number} has ranks, which do "
                        "not say how much better a response is: take another loss."
                    )
                if row.margin is None:
                    raise DataError(
                        f"--loss {self.loss} needs a margin for every pair, and that of line {row.number} has none: "
                        "add a column margin, or reward_chosen and reward_rejected, or take another loss."
                    )
        return encoder.encode_pairs(rows)

    def collate(self, examples: Sequence[EncodedPreference]) -> PairBatch:
        """Packed pairs and rankings."""
        return collate_pairs(examples)

    def weight(self, batch: PairBatch) -> int:
        """Prompts: a pair, or all pairs of a ranking."""
        return len(batch.rows)

    @staticmethod
    def measured(rewards: torch.Tensor, batch: PairBatch) -> dict[str, torch.Tensor]:
        """What is reported of ``rewards`` [completions]: means over a prompt's pairs, summed over the prompts; lengths
        in tokens.
        """
        chosen, rejected = rewards.detach()[batch.pairs]
        tokens = batch.lengths[batch.pairs]
        values = {
            "rewards/chosen": chosen,
            "rewards/rejected": rejected,
            "rewards/margin": chosen - rejected,
            "rewards/accuracy": chosen > rejected,
            "lengths/chosen": tokens[0],
            "lengths/rejected": tokens[1],
        }
        return {name: (batch.weights * each).sum() for name, each in values.items()}


def completion_logprobs(base: Base, batch: PairBatch, hidden: torch.Tensor) -> torch.Tensor:
    """Log-probabilities of the completions, stop token included, in nats as [completions] in float32.

    ``hidden`` is what ``packed_hidden`` gives for the batch.
    """
    return batch.packed.sums(target_logprobs(base, batch.packed, hidden))
