"""Prompting: the weights stay, the text around a row changes. Nothing is trained.

* zero-shot: the row's own prompt and nothing else;
* system: an instruction before it;
* few-shot: worked examples before it, taken from the training rows (Brown et al. 2020, arXiv:2005.14165): the same ones
  before every row, or for each those that are like it.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from tunescope.data.rows import Row
from tunescope.data.template import Shot, Template
from tunescope.errors import DataError
from tunescope.methods.method import Method
from tunescope.methods.space import OneOf


class Prompting(Method):
    """What the methods that train nothing share."""

    trains: ClassVar[Literal["nothing", "effects", "base"]] = "nothing"

    calibrate: Annotated[bool, OneOf(False, True)] = False
    """Take off what each label scores behind texts that say nothing (Zhao et al. 2021); for classification."""

    @property
    def fits_texts(self) -> bool:
        """Only labels are calibrated."""
        return not self.calibrate


class ZeroShot(Prompting):
    """The base as it is, under the row's own prompt."""

    name: ClassVar[str] = "zero-shot"


class System(Prompting):
    """An instruction before every prompt."""

    name: ClassVar[str] = "system"

    instruction: Annotated[
        str | None,
        OneOf(
            None,
            "Say what the text is about. Answer with one of: {labels}.",
            "Label the text. Possible labels: {labels}. Write the label only.",
            "Answer in one word.",
        ),
    ] = None
    """The instruction's text; {labels} in it stands for the labels of a classification task. By default one is written
    from these."""

    @property
    def fits_texts(self) -> bool:
        """An instruction may name the labels."""
        return super().fits_texts and "{labels}" not in (self.instruction or "")

    def prompt(self, template: Template, rows: Sequence[Row], labels: Sequence[str] | None, seed: int) -> Template:
        """The template with the instruction as its system text."""
        if self.instruction is not None:
            text = self.instruction.replace("{labels}", ", ".join(labels or ()))
        elif labels:
            text = (
                "You are an exact classifier. Read the user's text and answer with the one label that fits it best, "
                f"and nothing else. The labels: {', '.join(labels)}."
            )
        else:
            text = "Do exactly what the user asks. Answer with the result alone, without explanation."
        return template.model_copy(update={"system": text})


class FewShot(Prompting):
    """Worked examples before every prompt."""

    name: ClassVar[str] = "few-shot"
    draws: ClassVar[bool] = True

    shots: Annotated[int, OneOf(2, 4, 8, 16)] = Field(2, gt=0)
    """How many examples to show. They are drawn by the seed."""
    choice: Annotated[Literal["nearest", "balanced", "random"], OneOf("balanced", "nearest", "random")] = "nearest"
    """Which: before each prompt those that are nearest to it, by the words they share; or the same before all: one of
    each label before a second of any, or as the rows come."""
    pool: int = Field(500, gt=0)
    """How many drawn rows the nearest are found among. They are kept with the entry."""
    longest: int = Field(1200, gt=0)
    """Characters above which a training row is too long to be shown."""

    @property
    def rows_read(self) -> int:
        """Examples that are nearest are others for each row."""
        return 1 + self.shots * (self.choice == "nearest")

    def prompt(self, template: Template, rows: Sequence[Row], labels: Sequence[str] | None, seed: int) -> Template:
        """The template with drawn examples, or with those to choose from.

        Raises:
            DataError: fewer usable rows than shots.
        """
        usable = [r for r in rows if r.completion and len(r.messages) == 1 and len(r.prompt) <= self.longest]
        if len(usable) < self.shots:
            raise DataError(
                f"few-shot wants {self.shots} examples, but only {len(usable)} training rows are single prompts of at "
                f"most {self.longest} characters: lower --shots or raise --longest."
            )
        drawn = random.Random(seed)
        drawn.shuffle(usable)
        nearest = self.shots if self.choice == "nearest" else 0
        if nearest:
            chosen = usable[: max(self.pool, nearest)]
        else:
            chosen = _spread(usable, self.shots) if labels and self.choice == "balanced" else usable[: self.shots]
        drawn.shuffle(chosen)
        shots = tuple(Shot(prompt=r.prompt, completion=r.completion or "") for r in chosen)
        return template.model_copy(update={"shots": shots, "nearest": nearest})


def _spread(rows: Sequence[Row], count: int) -> list[Row]:
    """``count`` rows with their completions as different as possible, in the given order within a completion."""
    by_label: dict[str, list[Row]] = {}
    for row in rows:
        by_label.setdefault(row.completion or "", []).append(row)
    order = {label: i for i, label in enumerate(dict.fromkeys(r.completion or "" for r in rows))}
    ranked = [(rank, order[label], row) for label, found in by_label.items() for rank, row in enumerate(found)]
    return [row for _, _, row in sorted(ranked, key=lambda entry: entry[:2])[:count]]
