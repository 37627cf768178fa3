"""``advise``: which method of a comparison to take under one's own constraints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, Field

from tunescope.commands import fields
from tunescope.commands.command import Command, Result
from tunescope.commands.report import Report
from tunescope.settings import Duration, Shown, duration

if TYPE_CHECKING:
    from rich.console import Console

_LIMITS = ("max_forgetting", "max_memory_mb", "max_parameters", "max_size_mb", "many_tasks")


@dataclass(frozen=True)
class Chosen(Result):
    """What to take."""

    def show(self, console: Console) -> None:
        """The choice and its reasons, as sentences."""
        values = self.values
        score = f"{values['metric']} {values['score']:.3f} ({values['score_low']:.3f} to {values['score_high']:.3f})"
        console.print(f"Take {values['choice']}: {score}.")
        for line in (*values["reasons"], *values["changes"]):
            console.print(f"- {line}")
        if values["runner_up"]:
            console.print(f"- The runner-up is {values['runner_up']}.")
        for name, why in values["excluded"].items():
            console.print(f"- Out: {name}: {why}.")


def _milliseconds(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return float(value.strip()[:-2]) if value.strip().endswith("ms") else 1000 * duration(value)
    except ValueError:
        raise ValueError("not a latency: write 80ms or 1.5s") from None


class AdviseRequest(Command):
    """Say which method of a comparison to take under your constraints, the runner-up, and what would change it.

    The numbers are those that compare measured: nothing is run. Without constraints it is the comparison's own rule.
    """

    comparison: Annotated[fields.HomePath, Shown("RUN", positional=True)]
    """What compare --out wrote."""
    max_latency: Annotated[float | None, BeforeValidator(_milliseconds), Shown("DURATION"), Field(gt=0)] = None
    """Of an answer of 20 tokens, its prompt included: 80ms, 1.5s."""
    max_forgetting: float | None = Field(None, ge=0)
    """Rise of the loss on general text while it is on, in nats a token."""
    max_training: Duration | None = None
    """Time of its training."""
    max_memory_mb: float | None = Field(None, gt=0)
    """Peak memory while it was trained and measured."""
    max_parameters: int | None = Field(None, ge=0)
    """Parameters that are trained."""
    max_size_mb: float | None = Field(None, gt=0)
    """Size at rest of all tasks together."""
    many_tasks: int = Field(1, gt=0)
    """How many tasks will be customized so: what is kept for each counts as often, and whole models are left out."""
    weights: Annotated[dict[str, float] | None, Shown("NAME=NUMBER,...")] = None
    """What counts how much, of accuracy, latency, forgetting, training, memory, parameters, size: accuracy=3,latency=1.
    By default accuracy first, then the cheapest."""

    def run(self, report: Report | None = None) -> Chosen:
        """Read the comparison and choose."""
        from tunescope.comparison import read_comparison
        from tunescope.comparison.constrained import Constraints, decide

        comparison = read_comparison(self.comparison)
        given: dict[str, Any] = {name: getattr(self, name) for name in _LIMITS}
        given |= {"max_latency_ms": self.max_latency, "max_training_seconds": self.max_training}
        constraints = Constraints.parse(given | {"weights": self.weights or {}})
        decision = decide(comparison, constraints)
        row, second = decision.chosen, decision.runner_up
        return Chosen(
            {
                "choice": row.name,
                "runner_up": None if second is None else second.name,
                "metric": comparison.metric,
                "score": row.score,
                "score_low": row.score_low,
                "score_high": row.score_high,
                "reasons": decision.reasons,
                "changes": decision.changes,
                "excluded": decision.excluded,
                "utilities": decision.utilities,
                "path": row.path,
            }
        )
