"""What an objective is: which rows it wants, and the loss it minimizes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import UnionType
from typing import Any, ClassVar, Literal, Protocol

import torch

from tunescope.base import Base
from tunescope.data.batching import Batch
from tunescope.data.encoding import Encoded, Encoder
from tunescope.data.reading import Table
from tunescope.data.rows import Message, Row
from tunescope.data.template import Template
from tunescope.methods import Customized
from tunescope.methods.effects import Effect
from tunescope.objectives.forward import packed_hidden
from tunescope.settings import Settings


@dataclass(frozen=True)
class Loss:
    """The loss of a batch.

    Attributes:
        total: scalar in float32, summed over what ``Objective.weight`` counts.
        measured: what else was seen, each a scalar summed over the same; the loop reports the means.
    """

    total: torch.Tensor
    measured: Mapping[str, torch.Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Sampled:
    """A completion that a customization wrote.

    Attributes:
        text: without the stop token.
        tokens: ids, the stop token last where it wrote one.
        finished: whether it ended of itself and not by the limit of tokens.
        logprobs: of each token in nats, as the engine computed them.
    """

    text: str
    tokens: tuple[int, ...]
    finished: bool
    logprobs: tuple[float, ...]


class Sampler(Protocol):
    """Samples completions; training hands it to objectives, which may not import the engine."""

    def __call__(
        self,
        customized: Customized,
        prompts: Sequence[Sequence[Message]],
        *,
        n: int,
        seed: int,
        max_new_tokens: int,
        temperature: float = 1.0,
    ) -> list[list[Sampled]]:
        """``n`` completions of each prompt from ``customized`` as it is now.

        Args:
            customized: whose completions.
            prompts: messages that end in a user's turn.
            n: how many of each.
            seed: of the sampling: the same one gives the same completions.
            max_new_tokens: most tokens of each.
            temperature: 1 samples from the model itself.
        """
        ...


Scorer = Callable[[Sequence[Row], Sequence[str]], "Mapping[str, list[float | str]]"]
"""Gives completions of rows their scores, as ``reward``; higher is better. A text in place of one says why there is
none. Where it is a sum, ``reward/PART`` has the scores of each part.
"""


@dataclass(frozen=True)
class Services:
    """What training hands to an objective that learns from its own samples.

    Attributes:
        sample: samples completions.
        seed: of the run.
        score: the reward that the objective names; None where it names none.
        prior: answers without attributes, for SteerLM 2; None elsewhere.
        held_out: a judge that scores samples and is not learned from; None where the objective names none.
        critic: what is trained beside it to foresee rewards; None without one.
    """

    sample: Sampler
    seed: int = 0
    score: Scorer | None = None
    critic: Customized | None = None
    held_out: Scorer | None = None
    prior: Customized | None = None


class Objective(Settings, ABC):
    """What a customization is trained for. Orthogonal to the method: every trainable method works with each. Its fields
    are its settings, and flags of ``tunescope train METHOD --objective NAME``.

    The loop cuts an optimizer step's examples into parts. It divides the sum of the parts' losses by the sum of their
    ``weight``, so the step is the same however it was cut.
    """

    name: ClassVar[str]
    """As written on the command line."""
    takes: ClassVar[type[Row] | UnionType] = Row
    """What it learns from: a type of rows, or several."""
    example: ClassVar[type | UnionType] = Encoded
    """What ``examples`` and ``collect`` make: a dataclass whose fields JSON has values for."""
    unit: ClassVar[str] = "rows"
    """What ``Batch.units`` counts, for the speed that is reported: rows, or the pairs that rows are compared in."""
    cut: ClassVar[Literal["middle", "start"]] = "middle"
    """What a prompt that is too long loses."""

    validates: ClassVar[bool] = True
    """Whether it has a loss on rows that it does not learn from."""

    @abstractmethod
    def rows(
        self, table: Table, pattern: str | None, skip_bad: int, on_note: Callable[[str], None] = lambda note: None
    ) -> list[Any]:
        """The rows of a table, its columns understood. ``on_note`` is called with what is worth knowing of that.

        Raises:
            DataError: columns or rows that do not fit.
        """

    @property
    def optional(self) -> tuple[str, ...]:
        """Columns that a row may lack though others have them."""
        return ()

    @abstractmethod
    def examples(self, rows: Sequence[Any], encoder: Encoder) -> list[Any]:
        """The rows as this objective's examples, each with a length in tokens."""

    def labels(self, rows: Sequence[Any]) -> tuple[str, ...] | None:
        """The labels, where the rows are a classification task."""
        return None

    def notes(self, rows: Sequence[Any]) -> list[str]:
        """What is worth knowing of the rows, in words."""
        return []

    def template(self, template: Template, rows: Sequence[Any]) -> Template:
        """What stands around the rows: the template that was given, to which the objective may add.

        Raises:
            DataError: rows of which nothing can be learned.
            TrainingError: a template that it cannot add to.
        """
        return template

    def effects(self, base: Base, generator: torch.Generator, rows: Sequence[Any] = ()) -> dict[str, Effect]:
        """Effects that the objective itself brings and trains, whatever the method; keyed as a method's are.

        Args:
            base: that they are for.
            generator: draws what is random at their start.
            rows: what is learned from; none where their tensors are to be loaded.
        """
        return {}

    def prepare(self, customized: Customized, examples: Sequence[Any]) -> list[Any]:
        """What is computed once before training, while nothing acts on the base; returns the examples with it."""
        return list(examples)

    @property
    def number_of_rounds(self) -> int:
        """How often examples are collected in a run; each round takes the same number of steps on its own."""
        return 1

    def collect(self, number: int, customized: Customized, examples: Sequence[Any], services: Services) -> list[Any]:
        """The examples of a round, as the customization is when it begins; nothing acts on the base.

        Args:
            number: of the round, from 0.
            customized: what is trained.
            examples: what ``prepare`` made of the rows.
            services: how to sample and to score.
        """
        return list(examples)

    @property
    def observed(self) -> Mapping[str, float]:
        """What was seen when the round was collected; reported with each of its steps."""
        return {}

    @property
    def samples(self) -> Sequence[Mapping[str, Any]]:
        """Some of what the round learns from, to be read by people; each has its ``round``, from 0."""
        return []

    @property
    def history(self) -> Sequence[Mapping[str, float]]:
        """What was observed in each round so far."""
        return []

    def saw(self, measured: Mapping[str, float]) -> None:
        """A step was taken, over all of whose rows these are the means of what ``compute_loss`` measured."""

    @property
    def resting(self) -> bool:
        """Whether the round's next step is to be left out: it counts, and nothing moves."""
        return False

    def state(self) -> dict[str, Any]:
        """What the objective itself has learned or adapted so far, as JSON values, for the checkpoint."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state`` returned."""

    @abstractmethod
    def collate(self, examples: Sequence[Any]) -> Batch:
        """Examples as one batch of tensors."""

    @abstractmethod
    def weight(self, batch: Any) -> int:
        """How much the batch counts in the mean: trained tokens, or prompts whose completions are compared."""

    @abstractmethod
    def compute_loss(self, customized: Customized, batch: Any, hidden: torch.Tensor) -> Loss:
        """The loss of a batch.

        Args:
            customized: what is trained.
            batch: of its examples.
            hidden: [groups · length, hidden], what the vocabulary head reads at each position of ``batch.packed``.
        """

    def batch_loss(self, customized: Customized, batch: Any) -> Loss:
        """The loss of a batch in a pass of its own; the customization's effects are acting."""
        return self.compute_loss(customized, batch, packed_hidden(customized.base, batch.packed))
