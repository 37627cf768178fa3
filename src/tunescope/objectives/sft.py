"""Supervised fine-tuning: make the completion likely (the next-token cross-entropy of its tokens).

With ``--steer-columns`` it is SteerLM's attribute-conditioned fine-tuning (Dong et al. 2023, arXiv:2310.05344): a line
before the completion says what it is like (``quality:4,verbosity:1``), and in service what it is to be like.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, Literal

import torch
from pydantic import model_validator

from tunescope.data.attributes import KEY, Attribute, AttributeNames, Columns, Steering, check_vary, parse_steer, usual
from tunescope.data.batching import Batch, collate
from tunescope.data.encoding import Encoded, Encoder
from tunescope.data.reading import Table
from tunescope.data.rows import Row, label_set, to_rows
from tunescope.data.template import Template
from tunescope.errors import TrainingError
from tunescope.methods import Customized
from tunescope.objectives.forward import target_logprobs
from tunescope.objectives.objective import Loss, Objective


class SFT(Objective):
    """Learn the completions and nothing of the prompts."""

    name: ClassVar[str] = "sft"

    steer_columns: AttributeNames = ()
    """Columns with attributes of the completion, whole numbers, by which answers are steered later on."""
    steer_low: int = 0
    """The least value of an attribute."""
    steer_high: int = 4
    """The greatest value of an attribute."""
    steer_scale_from: tuple[float, float] | None = None
    """The range of the columns' values, where it is another one: 1,5 maps 1 on --steer-low and 5 on --steer-high."""
    steer_place: Literal["answer", "system"] = "answer"
    """Where the line of attributes stands: right before the answer, or at the end of the system text."""
    steer_defaults: str | None = None
    """What is asked for where a request says nothing, as quality=4,verbosity=2; by default the rows' mean, rounded."""

    @model_validator(mode="after")
    def _check_steering(self) -> SFT:
        fields = type(self).model_fields
        given = {n for n in fields if n.startswith("steer_") and getattr(self, n) != fields[n].default}
        if given and not self.steer_columns:
            raise ValueError(f"{', '.join(sorted(given))} say how to steer, and --steer-columns by what: name columns")
        if self.steer_high <= self.steer_low:
            raise ValueError(f"steer_high is {self.steer_high}, expected more than steer_low, {self.steer_low}")
        if self.steer_scale_from is not None and self.steer_scale_from[1] <= self.steer_scale_from[0]:
            raise ValueError("steer_scale_from is the least and the greatest value, in this order")
        return self

    def rows(
        self, table: Table, pattern: str | None, skip_bad: int, on_note: Callable[[str], None] = lambda note: None
    ) -> list[Row]:
        """Prompts with completions, and what the completions are like where that is learned from."""
        return to_rows(table, pattern, skip_bad=skip_bad, on_note=on_note, attributes=self._columns)

    @property
    def _columns(self) -> Columns | None:
        if not self.steer_columns:
            return None
        return Columns(self.steer_columns, self.steer_low, self.steer_high, self.steer_scale_from)

    def template(self, template: Template, rows: Sequence[Row]) -> Template:
        """With the attributes that answers are asked for."""
        if not self.steer_columns:
            return template
        if template.steering is not None and template.steering.names != self.steer_columns:
            raise TrainingError(
                f"What this starts from is steered by {', '.join(template.steering.names)}, and --steer-columns names "
                f"{', '.join(self.steer_columns)}: name the same, in this order."
            )
        values = [row.attributes for row in rows]
        check_vary(self.steer_columns, values, "The rows")
        steering = Steering(
            attributes=tuple(Attribute(name=name) for name in self.steer_columns),
            low=self.steer_low,
            high=self.steer_high,
            place=self.steer_place,
        )
        if template.steering is not None:
            self._check_same(steering, template.steering)
            steering = steering.model_copy(update={"place": template.steering.place})
        asked = steering.asked(parse_steer(self.steer_defaults)) if self.steer_defaults else {}
        defaults = {name: asked.get(name, usual(name, values)) for name in self.steer_columns}
        attributes = tuple(Attribute(name=name, default=default) for name, default in defaults.items())
        return template.model_copy(update={"steering": steering.model_copy(update={"attributes": attributes})})

    def _check_same(self, ours: Steering, before: Steering) -> None:
        """Refuse another range, or another place that was asked for, than those of what this starts from."""
        if (ours.low, ours.high) != (before.low, before.high):
            raise TrainingError(
                f"What this starts from has attributes from {before.low} to {before.high}: give --steer-low "
                f"{before.low} and --steer-high {before.high}."
            )
        if "steer_place" in self.model_fields_set and ours.place != before.place:
            raise TrainingError(
                f"--steer-place is {ours.place}, and what this starts from has its line at {before.place}: leave it "
                "out."
            )

    def labels(self, rows: Sequence[Row]) -> tuple[str, ...] | None:
        """Found in the completions."""
        return label_set(rows)

    @property
    def optional(self) -> tuple[str, ...]:
        """The columns of the attributes, and the one that holds objects of them."""
        return (*self.steer_columns, KEY) if self.steer_columns else ()

    def examples(self, rows: Sequence[Row], encoder: Encoder) -> list[Encoded]:
        """Every row that fits."""
        return encoder.encode_all(rows)

    def collate(self, examples: Sequence[Encoded]) -> Batch:
        """The rows behind the prefix that they share, where that pays."""
        return collate(examples)

    def weight(self, batch: Batch) -> int:
        """Trained tokens."""
        return batch.packed.targets.numel()

    def compute_loss(self, customized: Customized, batch: Batch, hidden: torch.Tensor) -> Loss:
        """Cross-entropy of the trained tokens in nats; the vocabulary head computes their positions only."""
        return Loss(-target_logprobs(customized.base, batch.packed, hidden).sum())
