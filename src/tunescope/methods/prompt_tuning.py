"""Prompt tuning: virtual tokens before the text (Lester et al. 2021, arXiv:2104.08691).

Against the plain transformer, at the embedding:

    X = [E(x_1) … E(x_n)]   becomes   X = [P_1 … P_m  E(x_1) … E(x_n)]

with P [virtual_tokens, hidden] trained and nothing else: the model's own vectors for words that no one can write. Each
task has a matrix of its own; tasks share nothing.

Where it begins decides much (section 3.2 of the paper): at the vectors of words drawn from the vocabulary, at those of
a text or of the task's labels, or at random numbers of the embedding's own scale. The vectors move slowly against that
scale, so the learning rate is tens of times LoRA's.

In NeMo's layout the virtual tokens stand at several marked places of a template, some at each:
``"<|VIRTUAL_PROMPT_0|> {sentence} <|VIRTUAL_PROMPT_1|> sentiment: {label}"`` with splits 10,10.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, model_validator

from tunescope.base import Base
from tunescope.data.rows import Row
from tunescope.data.template import Template
from tunescope.errors import TrainingError
from tunescope.methods.effects import Effect, SoftPrompt
from tunescope.methods.method import Method
from tunescope.methods.space import Between, OneOf
from tunescope.settings import MOST


class VirtualTokens(Method):
    """What prompt tuning and p-tuning have in common: virtual tokens, and where they stand."""

    effect: ClassVar[type[Effect] | None] = SoftPrompt

    virtual_tokens: Annotated[int, OneOf(20, 50)] = Field(20, gt=0, le=MOST)
    """How many virtual tokens. 20 is where the paper's gains level off."""
    splits: tuple[Annotated[int, Field(gt=0, le=MOST)], ...] = ()
    """How many of them stand at each marked place (<|VIRTUAL_PROMPT_0|> …) of the template; all before the text by
    default."""

    @model_validator(mode="after")
    def _whole_splits(self) -> VirtualTokens:
        if self.splits and sum(self.splits) != self.virtual_tokens:
            raise ValueError(f"splits {self.splits} must add up to virtual_tokens, {self.virtual_tokens}")
        return self

    def prompt(self, template: Template, rows: Sequence[Row], labels: Sequence[str] | None, seed: int) -> Template:
        """The template with these virtual tokens behind those that it has.

        Raises:
            TrainingError: it has some at marked places, and these would stand before the text, or the other way round.
        """
        if template.virtual_tokens and bool(template.virtual_splits) != bool(self.splits):
            raise TrainingError(
                "Virtual tokens at marked places (--splits) and others before the text cannot be in one template: give "
                "the new ones a place as those have that it starts from."
            )
        return template.model_copy(
            update={
                "virtual_tokens": template.virtual_tokens + self.virtual_tokens,
                "virtual_splits": (*template.virtual_splits, *self.splits),
            }
        )

    def check_room(self, base: Base) -> None:
        """Refuse more virtual tokens than the base has room for.

        Raises:
            TrainingError: no token of text would fit beside them.
        """
        if self.virtual_tokens >= base.context_length:
            raise TrainingError(
                f"{self.virtual_tokens} virtual tokens leave no room for text: the context of {base.name} has "
                f"{base.context_length} tokens. Take fewer virtual tokens."
            )


class PromptTuning(VirtualTokens):
    """Prompt tuning."""

    name: ClassVar[str] = "prompt-tuning"
    learning_rate: ClassVar[float] = 3e-2
    rates: ClassVar[Between | None] = Between(3e-3, 3e-1)

    initialize: Annotated[Literal["vocabulary", "text", "labels", "random"], OneOf("vocabulary", "random")] = (
        "vocabulary"
    )
    """Where the virtual tokens begin: at drawn words, at a text, at the task's labels, or at random numbers."""
    text: str | None = Field(None, min_length=1)
    """The text to begin at, with initialize text: repeated or cut to the number of virtual tokens."""

    @model_validator(mode="after")
    def _text_where_needed(self) -> PromptTuning:
        if (self.initialize == "text") != (self.text is not None):
            raise ValueError("initialize text and a text belong together: give both or neither")
        return self

    def effects(self, base: Base, generator: torch.Generator, labels: Sequence[str] | None = None) -> dict[str, Effect]:
        """One ``SoftPrompt``, [virtual_tokens, hidden].

        Raises:
            TrainingError: no room for the virtual tokens, or labels to begin at where the task has none.
        """
        self.check_room(base)
        if self.initialize == "text":
            ids = base.tokenizer(self.text, add_special_tokens=False)["input_ids"]
            repeated = ids * -(-self.virtual_tokens // len(ids))
            rows = embed(base, repeated[: self.virtual_tokens])
        elif self.initialize == "labels":
            rows = self._from_labels(base, labels, generator)
        elif self.initialize == "random":
            rows = random_rows(base, self.virtual_tokens, generator)
        else:
            rows = embed(base, draw_words(base, self.virtual_tokens, generator))
        return {"embedding.prefix": SoftPrompt(rows)}

    def _from_labels(self, base: Base, labels: Sequence[str] | None, generator: torch.Generator) -> torch.Tensor:
        """A row a label, the mean of its tokens; drawn words where there are more rows than labels (section 3.2)."""
        if not labels:
            raise TrainingError("initialize labels needs a classification task, and this one has no labels.")
        means = [
            embed(base, base.tokenizer(label, add_special_tokens=False)["input_ids"]).mean(dim=0)
            for label in labels[: self.virtual_tokens]
        ]
        drawn = embed(base, draw_words(base, self.virtual_tokens - len(means), generator))
        return torch.cat([torch.stack(means), drawn])


def embed(base: Base, ids: Sequence[int]) -> torch.Tensor:
    """What the frozen embedding gives for tokens, as [tokens, hidden] in float32, with any scale it applies."""
    with torch.no_grad():
        return base.embedding(torch.tensor(ids, dtype=torch.long, device=base.device)).float()


def draw_words(base: Base, count: int, generator: torch.Generator) -> list[int]:
    """Ids of ``count`` tokens of the vocabulary, special ones left out; distinct while there are enough."""
    special = set(base.tokenizer.all_special_ids) | set(base.tokenizer.added_tokens_decoder)
    words = [i for i in range(len(base.tokenizer)) if i not in special]
    order = torch.randperm(len(words), generator=generator).tolist()
    return [words[order[i % len(order)]] for i in range(count)]


def random_rows(base: Base, count: int, generator: torch.Generator) -> torch.Tensor:
    """[count, hidden] of normal numbers with the standard deviation of the embedding's outputs."""
    sample = embed(base, draw_words(base, 1000, generator))
    return torch.randn(count, sample.shape[1], generator=generator).to(sample.device) * sample.std()
