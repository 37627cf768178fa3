"""What a training run did."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tunescope.data.batching import Batch


@dataclass(frozen=True)
class Counted:
    """What a step computed: rows, units, tokens, and of all tokens that went through the base the padding."""

    rows: int = 0
    units: int = 0
    tokens: int = 0
    computed: int = 0
    padding: int = 0

    @classmethod
    def of(cls, parts: Sequence[Batch]) -> Counted:
        """Of these parts."""
        return cls(
            sum(len(part.rows) for part in parts),
            sum(part.units for part in parts),
            sum(part.packed.tokens for part in parts),
            sum(part.packed.computed for part in parts),
            sum(part.packed.padding for part in parts),
        )


@dataclass
class TrainResult:
    """What a run did, summed over all its parts if it was interrupted.

    ``seconds`` is of the steps, ``prepare_seconds`` of what the objective computed before them (next to nothing where
    it was kept from an earlier run); ``tokens`` are real ones, and ``pad_fraction`` the share of computed tokens that
    were padding; ``loss``, and whatever else the objective ``measured`` at each step, are means of the last tenth of
    the steps. ``units`` counts what the objective calls ``unit``. ``validation`` holds (step, loss) of the rows kept
    apart.
    """

    steps: int = 0
    seconds: float = 0.0
    rows: int = 0
    units: int = 0
    tokens: int = 0
    computed_tokens: int = 0
    padding: int = 0
    peak_memory_mb: float = 0.0
    unit: str = "rows"
    prepare_seconds: float = 0.0
    stopped_early: bool = False
    losses: list[float] = field(default_factory=list)
    measured: dict[str, list[float]] = field(default_factory=dict)
    times: list[float] = field(default_factory=list)
    validation: list[tuple[int, float]] = field(default_factory=list)

    def count(self, step: Counted, loss: float, measured: Mapping[str, float], seconds: float) -> None:
        """Add an optimizer step."""
        self.steps += 1
        self.seconds += seconds
        self.rows += step.rows
        self.units += step.units
        self.tokens += step.tokens
        self.computed_tokens += step.computed
        self.padding += step.padding
        self.losses.append(loss)
        for name, value in measured.items():
            self.measured.setdefault(name, []).append(value)
        self.times.append(round(self.seconds, 4))

    def summary(self) -> dict[str, float | int]:
        """The numbers that ``train --json`` prints."""
        seconds = max(self.seconds, 1e-9)
        return {
            "steps": self.steps,
            **({"stopped_early": True} if self.stopped_early else {}),
            "seconds": round(self.seconds, 3),
            "prepare_seconds": round(self.prepare_seconds, 3),
            "rows_per_s": round(self.rows / seconds, 3),
            f"{self.unit}_per_s": round(self.units / seconds, 3),
            "tokens_per_s": round(self.tokens / seconds, 2),
            "tokens": self.tokens,
            "computed_tokens": self.computed_tokens,
            "pad_fraction": round(self.padding / max(self.computed_tokens, 1), 4),
            "peak_memory_mb": round(self.peak_memory_mb, 1),
            "loss": _tail_mean(self.losses),
            **{name: _tail_mean(values) for name, values in self.measured.items()},
            **({"validation_loss": round(self.validation[-1][1], 5)} if self.validation else {}),
        }


def _tail_mean(values: Sequence[float]) -> float:
    """Mean of the last tenth."""
    tail = values[-max(len(values) // 10, 1) :]
    return round(sum(tail) / max(len(tail), 1), 5)
