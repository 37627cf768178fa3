"""Attribute models: what a completion is like, in several numbers, learned from rated rows (the first step of SteerLM:
Dong et al. 2023, arXiv:2310.05344).

    â(x, y) = W h + b        L = Σ (â_i - a_i)², over the attributes i that the row has a value for

with h [hidden] what the vocabulary head would read at the last token of the completion, its stop token, and W
[attributes, hidden], b [attributes] a ``Head``. The bias begins at the training rows' means, so that the first step
already is about what differs between completions. ``tunescope annotate`` labels rows by what was trained.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from pydantic import model_validator

from tunescope.base import Base
from tunescope.data.attributes import HELPSTEER, KEY, AttributeNames, Columns, check_vary
from tunescope.data.batching import Batch, collate
from tunescope.data.encoding import Encoded, Encoder
from tunescope.data.reading import Table
from tunescope.data.rows import Row, to_rows
from tunescope.data.template import Template
from tunescope.methods import Customized
from tunescope.methods.effects import Effect
from tunescope.objectives.heads import Head
from tunescope.objectives.objective import Loss, Objective

HEAD = "attributes"


@dataclass(frozen=True, kw_only=True)
class EncodedRated(Encoded):
    """A row as tokens, with the values of its attributes, nan where there is none."""

    values: tuple[float, ...]


@dataclass
class RatedBatch(Batch):
    """Rated rows, packed: ``values`` [rows, attributes], nan where there is none."""

    values: torch.Tensor


class Attributes(Objective):
    """Tell what completions are like."""

    name: ClassVar[str] = "attributes"
    example: ClassVar[type] = EncodedRated
    cut: ClassVar[Literal["middle", "start"]] = "start"

    columns: AttributeNames = HELPSTEER
    """Columns with the attributes; rows may lack some values. HelpSteer's five by default."""
    low: int = 0
    """The least value."""
    high: int = 4
    """The greatest value."""
    scale_from: tuple[float, float] | None = None
    """The range of the columns' values, where it is another one: 1,5 maps 1 on --low and 5 on --high."""

    @model_validator(mode="after")
    def _check_range(self) -> Attributes:
        if not self.columns:
            raise ValueError("columns names no attribute: give at least one")
        if self.high <= self.low:
            raise ValueError(f"high is {self.high}, expected more than low, {self.low}")
        if self.scale_from is not None and self.scale_from[1] <= self.scale_from[0]:
            raise ValueError("scale_from is the least and the greatest value, in this order")
        return self

    def rows(
        self, table: Table, pattern: str | None, skip_bad: int, on_note: Callable[[str], None] = lambda note: None
    ) -> list[Row]:
        """Prompts with completions and their attributes."""
        columns = Columns(self.columns, self.low, self.high, self.scale_from)
        return to_rows(table, pattern, skip_bad=skip_bad, on_note=on_note, attributes=columns)

    def template(self, template: Template, rows: Sequence[Row]) -> Template:
        """Without a line of attributes: of what it starts from it would show the labels that are to be told."""
        return template.model_copy(update={"steering": None})

    @property
    def optional(self) -> tuple[str, ...]:
        """The columns of the attributes, and the one that holds objects of them."""
        return (*self.columns, KEY)

    def examples(self, rows: Sequence[Row], encoder: Encoder) -> list[EncodedRated]:
        """Every row that fits."""
        values = self._values(rows)
        return [EncodedRated(**vars(each), values=values[i]) for i, each in encoder.fitting(rows)]

    def effects(self, base: Base, generator: torch.Generator, rows: Sequence[Row] = ()) -> dict[str, Effect]:
        """The head, its bias the means of the rows' values."""
        head = Head(base.hidden_size, len(self.columns), bias=True)
        if rows and head.bias is not None:
            check_vary(self.columns, [row.attributes for row in rows], "The rows")
            head.bias.data.copy_(torch.tensor(self._values(rows)).nanmean(dim=0))
        return {f"head.{HEAD}": head}

    def _values(self, rows: Sequence[Row]) -> list[tuple[float, ...]]:
        """Of each row its values, nan where there is none."""
        return [tuple(float(row.attributes.get(name, math.nan)) for name in self.columns) for row in rows]

    def collate(self, examples: Sequence[EncodedRated]) -> RatedBatch:
        """The rows behind the prefix that they share, where that pays."""
        batch = collate(examples, ends=True)
        return RatedBatch(batch.packed, batch.rows, torch.tensor([example.values for example in examples]))

    def weight(self, batch: RatedBatch) -> int:
        """Values that are there."""
        return int((~batch.values.isnan()).sum())

    def compute_loss(self, customized: Customized, batch: RatedBatch, hidden: torch.Tensor) -> Loss:
        """Squared errors of the values that are there, summed."""
        predicted = customized.customization.heads[HEAD](hidden[batch.packed.last])
        error = torch.where(batch.values.isnan(), 0, predicted - batch.values.nan_to_num())
        return Loss(error.square().sum(), {"absolute_error": error.detach().abs().sum()})

    def notes(self, rows: Sequence[Any]) -> list[str]:
        """How many values are missing."""
        missing = sum(len(self.columns) - len(row.attributes) for row in rows)
        return [f"{missing} values are missing and were left out of the loss."] if missing else []
