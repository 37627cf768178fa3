"""``metrics.jsonl``: a line a step, appended and never written again."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Self

from tunescope import storage
from tunescope.errors import TrainingError

METRICS = "metrics.jsonl"
# Of a learner that takes its steps beside another, in the same folder.
METRICS_BESIDE = "critic.jsonl"


@dataclass(frozen=True)
class StepMetrics:
    """What one optimizer step measured. ``loss`` is the mean before the step; ``seconds`` of the loop so far;
    ``measured`` what the objective reports beside its loss, as means over the step.
    """

    step: int
    steps: int
    loss: float
    grad_norm: float
    lr: float
    tokens: int
    seconds: float
    tokens_per_s: float
    measured: dict[str, float] = field(default_factory=dict)

    def values(self) -> dict[str, float | int]:
        """All of it by name, for files and trackers."""
        values = asdict(self)
        return {**values, **values.pop("measured")}


class MetricsLog:
    """The file of an unfinished run, open for appending; a context manager.

    A step's line is written before the checkpoint that holds the step, so a kill between the two leaves lines after the
    checkpoint, never a step without one. Those lines, the last perhaps half-written, are cut off when the run goes on,
    as it takes their steps again.

    Args:
        folder: of the run.
        done: steps that the checkpoint holds; 0 where there is none.
        name: of the file.

    Raises:
        TrainingError: a line of one of these steps is missing or damaged.
    """

    def __init__(self, folder: Path, done: int, name: str = METRICS) -> None:
        path = folder / name
        if path.is_file():
            os.truncate(path, _end_of(path, done))
        elif done:
            raise _damaged(path, 1)
        with storage.disk_errors(folder):
            self._file = path.open("ab")

    def append(self, metrics: StepMetrics) -> None:
        """Add a step's line; it survives this process from here on."""
        self._file.write(json.dumps(metrics.values()).encode() + b"\n")
        self._file.flush()

    def sync(self) -> None:
        """See that the lines are on the disk, before a checkpoint counts on them."""
        os.fsync(self._file.fileno())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def _end_of(path: Path, done: int) -> int:
    """Bytes of the first ``done`` lines."""
    end = 0
    with path.open("rb") as file:
        for step in range(1, done + 1):
            line = file.readline()
            try:
                whole = line.endswith(b"\n") and json.loads(line)["step"] == step
            except (ValueError, KeyError, TypeError):
                whole = False
            if not whole:
                raise _damaged(path, step)
            end += len(line)
    return end


def _damaged(path: Path, line: int) -> TrainingError:
    return TrainingError(
        f"{path}, line {line}: the line of step {line} is missing or damaged, though the checkpoint holds the step. "
        "Start over with --restart."
    )
