"""A candidate: one setting of one method, and how it did on the validation rows."""

from __future__ import annotations

import json
from typing import Any

from pydantic import Field

from tunescope.comparison.part import Part
from tunescope.methods import Method
from tunescope.methods.space import Point

# Seeds of repetitions are this far apart, beyond the numbers that points add to a seed.
_SEEDS_APART = 1_000_003


class Rung(Part):
    """A candidate as it was measured on validation rows, once."""

    steps: int
    """Optimizer steps so far; for prompting, 0."""
    trained_tokens: int
    """Tokens learned from so far."""
    seconds: float
    """Time in the training loop so far."""
    rows: int
    """Validation rows it was measured on."""
    score: float
    """The comparison's metric on them."""
    loss: float | None
    """Nats per completion token on them, or per pair; None where only a judge reads them."""
    test_seen: bool = False
    """Whether the test rows had been opened for this method before."""

    @property
    def order(self) -> tuple[float, float]:
        """Sorts the better one first: the higher score, and of equal ones the lower loss."""
        return (-self.score, self.loss or 0.0)


class Candidate(Part):
    """One setting of one method, with what is known of it so far."""

    method: str
    number: int
    """Of its point in the method's space; 0 is the defaults."""
    settings: dict[str, Any]
    """Of the method, where they are not the defaults."""
    lr: float | None
    """Highest learning rate; None where nothing is trained."""
    seed: int
    """Of initialization, order of the rows and drawn prompts."""
    steps: int | None
    """Steps of the whole run, which the rate's schedule is for; None where nothing is trained."""
    rungs: list[Rung] = Field(default_factory=list)
    """As it was measured, in order."""
    draw: int = 0
    """Which draw of the prompt it is, where the method draws one."""
    repeat: int = 0
    """Which further training of the same setting it is, by another seed; 0 is the search's own."""
    row_count: int | None = None
    """How many of the rows it learned from, where these were fewer than all."""
    error: str | None = None
    """Why it failed, where it did."""

    @classmethod
    def at(cls, point: Point, method: str, seed: int, steps: int | None) -> Candidate:
        """The candidate at a point of the method's space."""
        return cls(
            method=method,
            number=point.number,
            settings=json.loads(json.dumps(point.settings)),  # as it is read back
            lr=point.lr,
            seed=seed + point.draw,
            draw=point.draw,
            steps=steps,
        )

    @property
    def name(self) -> str:
        """Unique in a comparison: method, number, and which repetition it is."""
        repeat = f"-{self.repeat}" if self.repeat else ""
        return f"{self.method}-{self.number}{repeat}" + (f"-of-{self.row_count}" if self.row_count else "")

    @property
    def state(self) -> str:
        """Its name, and how far it was trained: what was measured of it is of this state."""
        return f"{self.name}, step {self.rungs[-1].steps if self.rungs else 0}"

    def again(self, repeat: int) -> Candidate:
        """The same setting under another seed, not measured yet."""
        return self.model_copy(update={"repeat": repeat, "seed": self.seed + _SEEDS_APART * repeat, "rungs": []})

    def on_fewer(self, rows: int) -> Candidate:
        """The same setting, to learn from fewer rows in as many steps, not measured yet."""
        return self.model_copy(update={"row_count": rows, "rungs": []})

    @property
    def progress(self) -> float:
        """How far it came: the share of its run that is done, or for prompting the rows it was measured on."""
        if not self.rungs:
            return 0.0
        return self.rungs[-1].rows if self.steps is None else self.rungs[-1].steps / self.steps

    @property
    def words(self) -> str:
        """What is tried, in words."""
        rate = [] if self.lr is None else [f"lr {self.lr:g}"]
        given = [f"{name.replace('_', '-')} {_shown(value)}" for name, value in self.settings.items()]
        draw = [f"draw {self.draw}"] if self.draw else []
        return ", ".join([*rate, *given, *draw]) or "its defaults"

    def make(self, kind: type[Method]) -> Method:
        """The method with these settings."""
        return kind.parse(self.settings)


def _shown(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
