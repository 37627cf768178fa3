"""Progress for people: a bar on a terminal, plain lines elsewhere. All of it on standard error."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from tunescope.comparison.formatting import duration
from tunescope.comparison.report.terminal import render_table
from tunescope.comparison.results import Comparison
from tunescope.comparison.runner import Watcher
from tunescope.training import StepMetrics

_LINE_SECONDS = 10.0


class TrainingProgress:
    """Shows the steps of one training run: loss, of a round of samples reward and KL, tokens/s, time left."""

    def __init__(self, console: Console, name: str = "training") -> None:
        self._console, self._name = console, name
        self._bar: Progress | None = None
        self._task: Any = None
        self._said = 0.0

    def __enter__(self) -> TrainingProgress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def __call__(self, metrics: StepMetrics) -> None:
        """Show one step."""
        if self._console.is_terminal:
            self._draw(metrics)
        elif metrics.step == metrics.steps or time.monotonic() - self._said > _LINE_SECONDS:
            self._said = time.monotonic()
            left = (metrics.steps - metrics.step) * metrics.seconds / metrics.step
            self._console.print(
                f"{self._name}: step {metrics.step}/{metrics.steps}, loss {metrics.loss:.4f}, {_round(metrics, ', ')}"
                f"{metrics.tokens_per_s:.0f} tokens/s, {left:.0f} s left"
            )

    def _draw(self, metrics: StepMetrics) -> None:
        if self._bar is None:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("loss {task.fields[loss]:.4f}  {task.fields[round]}{task.fields[speed]:.0f} tokens/s"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=self._console,
            )
            self._task = self._bar.add_task(self._name, total=metrics.steps, loss=metrics.loss, speed=0.0, round="")
            self._bar.start()
        seen: dict[str, Any] = {"loss": metrics.loss, "speed": metrics.tokens_per_s, "round": _round(metrics, "  ")}
        self._bar.update(self._task, completed=metrics.step, **seen)


def _round(metrics: StepMetrics, separator: str) -> str:
    """What the round's samples were worth and how far they are from the reference; nothing where there are none."""
    if not {"reward", "kl"} <= metrics.measured.keys():
        return ""
    return f"reward {metrics.measured['reward']:.3f}{separator}KL {metrics.measured['kl']:.2f} nats{separator}"


class CountProgress:
    """Shows how many of a known number of things are done."""

    def __init__(self, console: Console, name: str, total: int, unit: str) -> None:
        self._console, self._name, self._total, self._unit = console, name, total, unit
        self._bar: Progress | None = None
        self._task: Any = None
        self._began = self._said = time.monotonic()

    def __enter__(self) -> CountProgress:
        if self._console.is_terminal:
            columns = (BarColumn(), MofNCompleteColumn(), TextColumn(self._unit), TimeElapsedColumn())
            self._bar = Progress(
                TextColumn("{task.description}"), *columns, TimeRemainingColumn(), console=self._console
            )
            self._task = self._bar.add_task(self._name, total=self._total)
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, done: int) -> None:
        """Show that ``done`` are done."""
        if self._bar is not None:
            self._bar.update(self._task, completed=done)
        elif done == self._total or time.monotonic() - self._said > _LINE_SECONDS:
            self._said = time.monotonic()
            self._console.print(f"{self._name}: {done}/{self._total} {self._unit}, {self._said - self._began:.0f} s")


class ComparisonProgress(Watcher):
    """Shows what a comparison does, a line each, and the table each time it has become sharper."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._training: TrainingProgress | None = None
        self._name, self._began = "", time.monotonic()

    def begin(self, method: str, what: str) -> None:
        """A line."""
        self.close()
        self._name = method
        self._console.print(f"[{duration(time.monotonic() - self._began)}] {method}: {what}", markup=False)

    def step(self, metrics: StepMetrics) -> None:
        """The bar."""
        self._training = self._training or TrainingProgress(self._console, f"      {self._name}")
        self._training(metrics)

    def stage(self, stage: str) -> None:
        """A dim line."""
        self.close()
        self._console.print(f"      {stage} …", style="dim")

    def end(self, text: str) -> None:
        """What came out of it."""
        self.close()
        self._console.print(f"      {text}", markup=False)

    def table(self, comparison: Comparison) -> None:
        """The table so far; the last one is the command's own result."""
        self.close()
        if comparison.split == "validation":
            self._console.print(render_table(comparison, self._console.width))

    def close(self) -> None:
        """End the bar that is shown, if any."""
        if self._training is not None:
            self._training.__exit__()
            self._training = None
