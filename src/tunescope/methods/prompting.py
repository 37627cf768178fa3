"""Prompting: the weights stay, the text around a row changes. Nothing is trained.

* zero-shot: the row's own prompt and nothing else;
* system: an instruction before it;
* few-shot: worked examples before it, taken from the training rows (Brown et al. 2020, arXiv:2005.14165).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field

from tunescope.data.rows import Row
from tunescope.data.template import Shot, Template
from tunescope.errors import DataError
from tunescope.methods.method import Method


class ZeroShot(Method):
    """The base as it is, under the row's own prompt."""

    name: ClassVar[str] = "zero-shot"
    trains: ClassVar[Literal["nothing", "effects", "base"]] = "nothing"


class System(Method):
    """An instruction before every prompt."""

    name: ClassVar[str] = "system"
    trains: ClassVar[Literal["nothing", "effects", "base"]] = "nothing"

    instruction: str | None = None
    """The instruction's text. By default one is written from the labels of a classification task."""

    def prompt(self, template: Template, rows: Sequence[Row], labels: Sequence[str] | None, seed: int) -> Template:
        """The template with the instruction as its system text."""
        if self.instruction is not None:
            text = self.instruction
        elif labels:
            text = (
                "You are an exact classifier. Read the user's text and answer with the one label that fits it best, "
                f"and nothing else. The labels: {', '.join(labels)}."
            )
        else:
            text = "Do exactly what the user asks. Answer with the result alone, without explanation."
        return template.model_copy(update={"system": text})


class FewShot(Method):
    """Worked examples before every prompt."""

    name: ClassVar[str] = "few-shot"
    trains: ClassVar[Literal["nothing", "effects", "base"]] = "nothing"

    shots: int = Field(4, gt=0)
    """How many examples to show. They are drawn by the seed, one of each label before a second of any."""
    longest: int = Field(1200, gt=0)
    """Characters above which a training row is too long to be shown."""

    def prompt(self, template: Template, rows: Sequence[Row], labels: Sequence[str] | None, seed: int) -> Template:
        """The template with drawn examples.

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
        chosen = _spread(usable, self.shots) if labels else usable[: self.shots]
        drawn.shuffle(chosen)
        shots = tuple(Shot(prompt=r.prompt, completion=r.completion or "") for r in chosen)
        return template.model_copy(update={"shots": shots})


def _spread(rows: Sequence[Row], count: int) -> list[Row]:
    """``count`` rows with their completions as different as possible, in the given order within a completion."""
    by_label: dict[str, list[Row]] = {}
    for row in rows:
        by_label.setdefault(row.completion or "", []).append(row)
    order = {label: i for i, label in enumerate(dict.fromkeys(r.completion or "" for r in rows))}
    ranked = [(rank, order[label], row) for label, found in by_label.items() for rank, row in enumerate(found)]
    return [row for _, _, row in sorted(ranked, key=lambda entry: entry[:2])[:count]]
