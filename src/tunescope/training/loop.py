"""The one training loop: every method, every objective."""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from tunescope import memory
from tunescope.data.batching import Batch, BatchOrder
from tunescope.errors import Interrupted, TrainingError
from tunescope.methods import Customized
from tunescope.objectives import Objective
from tunescope.training.checkpoint import FILE, load_checkpoint, save_checkpoint
from tunescope.training.metrics import MetricsLog, StepMetrics
from tunescope.training.optimizer import Optimizer, learning_rate_factor
from tunescope.training.settings import TrainSettings

_CHECKPOINT_SECONDS = 60.0
# The kinds of device on which torch can sum a tensor's bits.
_SUMS_BITS = ("cpu", "cuda")


@dataclass
class TrainResult:
    """What a run did, summed over all its parts if it was interrupted.

    ``seconds`` is of the loop, ``prepare_seconds`` of what the objective computed before it (next to nothing where it
    was kept from an earlier run); ``tokens`` are real ones, and ``pad_fraction`` the share of computed tokens that were
    padding; ``loss``, and whatever else the objective ``measured`` at each step, are means of the last tenth of the
    steps. ``unit`` is what the objective calls a row.
    """

    steps: int = 0
    seconds: float = 0.0
    rows: int = 0
    tokens: int = 0
    computed_tokens: int = 0
    padding: int = 0
    peak_memory_mb: float = 0.0
    unit: str = "rows"
    prepare_seconds: float = 0.0
    losses: list[float] = field(default_factory=list)
    measured: dict[str, list[float]] = field(default_factory=dict)
    times: list[float] = field(default_factory=list)

    def summary(self) -> dict[str, float | int]:
        """The numbers that ``train --json`` prints."""
        rate = round(self.rows / max(self.seconds, 1e-9), 3)
        return {
            "steps": self.steps,
            "seconds": round(self.seconds, 3),
            "prepare_seconds": round(self.prepare_seconds, 3),
            "rows_per_s": rate,
            f"{self.unit}_per_s": rate,
            "tokens_per_s": round(self.tokens / max(self.seconds, 1e-9), 2),
            "tokens": self.tokens,
            "computed_tokens": self.computed_tokens,
            "pad_fraction": round(self.padding / max(self.computed_tokens, 1), 4),
            "peak_memory_mb": round(self.peak_memory_mb, 1),
            "loss": _tail_mean(self.losses),
            **{name: _tail_mean(values) for name, values in self.measured.items()},
        }


def _tail_mean(values: Sequence[float]) -> float:
    """Mean of the last tenth."""
    tail = values[-max(len(values) // 10, 1) :]
    return round(sum(tail) / max(len(tail), 1), 5)


def total_steps(settings: TrainSettings, rows: int) -> int:
    """Optimizer steps of a run over ``rows`` training rows."""
    if settings.max_steps is not None:
        return settings.max_steps
    return max(1, math.ceil(settings.epochs * -(-rows // settings.batch_size)))


def train_loop(
    customized: Customized,
    objective: Objective,
    examples: Sequence[Any],
    settings: TrainSettings,
    folder: Path,
    *,
    default_lr: float,
    on_step: Callable[[StepMetrics], None] = lambda metrics: None,
) -> TrainResult:
    """Train ``customized`` in place, going on from the checkpoint in ``folder`` if there is one.

    Args:
        customized: at its start; its effects, or its moved base, change.
        objective: gives the loss.
        examples: what ``objective.examples`` made.
        settings: of the loop.
        folder: where checkpoints and ``metrics.jsonl`` go.
        default_lr: the rate when the settings name none.
        on_step: called after each step, while nothing acts on the base: an engine may serve rows of it.

    Raises:
        TrainingError: a loss or gradient that is not finite (with the step and the rows), a base that moved.
        BaseInUseError: another customization acts on the base at a step.
        Interrupted: after Ctrl-C, once everything is saved.
    """
    run = _Run(customized, objective, examples, settings, folder, settings.lr or default_lr)
    before = None if customized.moves_base else _checksum(customized.origin.model)
    with MetricsLog(folder, run.step) as log, _interruptible() as stopped:
        _set_training(customized, True)
        try:
            while run.step < run.steps:
                metrics = run.advance()
                log.append(metrics)
                if run.checkpoint_is_due():
                    log.sync()
                    run.save()
                on_step(metrics)
                if stopped() and run.step < run.steps:
                    log.sync()
                    run.save()
                    raise Interrupted(
                        f"Stopped after step {run.step} of {run.steps}; everything is saved. Run the same command "
                        "again to go on."
                    )
        finally:
            _set_training(customized, False)
    if before is not None and _checksum(customized.origin.model) != before:
        raise TrainingError("The frozen base's weights changed while training: nothing was saved.")
    run.result.peak_memory_mb = max(run.result.peak_memory_mb, memory.peak_mb(customized.base.device))
    return run.result


class _Run:
    """The state of a run between steps."""

    def __init__(
        self,
        customized: Customized,
        objective: Objective,
        examples: Sequence[Any],
        settings: TrainSettings,
        folder: Path,
        lr: float,
    ) -> None:
        if not examples:
            raise TrainingError("No training row is left: none fits. Raise --max-length or shorten the completions.")
        self.customized, self.objective, self.examples = customized, objective, examples
        self.settings, self.folder = settings, folder
        self.steps = total_steps(settings, len(examples))
        self.order = BatchOrder.of(examples, settings.batch_size, settings.seed)
        self.optimizer = Optimizer(customized, lr, settings.weight_decay)
        self.epoch: tuple[int, list[list[int]]] = (-1, [])
        self.result = TrainResult(unit=objective.unit)
        self.saved_at = time.monotonic()
        torch.manual_seed(settings.seed)
        memory.reset_peak(customized.base.device)
        state = load_checkpoint(folder, self.optimizer)
        if state is not None:
            self.result = TrainResult(**state)  # the recipe is the same, so it has the same fields

    @property
    def step(self) -> int:
        """Steps done."""
        return self.result.steps

    def advance(self) -> StepMetrics:
        """One optimizer step."""
        started = time.perf_counter()
        parts = self._parts(self._indices())
        loss, measured = self._gradients(parts)
        norm = self.optimizer.gradient_norm(self.settings.max_grad_norm)
        if not math.isfinite(loss) or not math.isfinite(norm):
            raise TrainingError(self._not_finite(loss, parts))
        factor = learning_rate_factor(self.step, self.steps, self.settings.warmup)
        self.optimizer.step(factor)
        return self._count(parts, loss, measured, norm, self.optimizer.lr * factor, time.perf_counter() - started)

    def checkpoint_is_due(self) -> bool:
        """After the last step; never when it was the run's last."""
        every = self.settings.checkpoint_every
        due = self.step % every == 0 if every else time.monotonic() - self.saved_at > _CHECKPOINT_SECONDS
        return due and self.step < self.steps

    def save(self) -> None:
        """Write a checkpoint of the state after the last step."""
        self.result.peak_memory_mb = max(self.result.peak_memory_mb, memory.peak_mb(self.customized.base.device))
        save_checkpoint(self.folder, self.optimizer, asdict(self.result))
        self.saved_at = time.monotonic()

    def _indices(self) -> list[int]:
        epoch, index = divmod(self.step, self.order.batches_per_epoch)
        if self.epoch[0] != epoch:
            self.epoch = (epoch, self.order.epoch(epoch))
        return self.epoch[1][index]

    def _parts(self, indices: list[int]) -> list[Batch]:
        size = -(-len(indices) // self.settings.accumulate)
        cuts = [indices[i : i + size] for i in range(0, len(indices), size)]
        device = self.customized.base.device
        return [self.objective.collate([self.examples[i] for i in cut]).to(device) for cut in cuts]

    def _gradients(self, parts: list[Batch]) -> tuple[float, Counter[str]]:
        """Leave the step's gradients in the parameters; returns the loss and what else was measured, as means."""
        weight = max(sum(self.objective.weight(part) for part in parts), 1)
        loss, measured = 0.0, Counter[str]()
        with self.customized.active():
            for part in parts:
                found = self.objective.loss(self.customized, part)
                part_loss = found.total / weight
                part_loss.backward()
                loss += part_loss.item()
                measured.update({name: value.item() / weight for name, value in found.measured.items()})
        return loss, measured

    def _count(
        self, parts: list[Batch], loss: float, measured: Mapping[str, float], norm: float, lr: float, seconds: float
    ) -> StepMetrics:
        result = self.result
        result.steps += 1
        result.seconds += seconds
        result.rows += sum(len(part.rows) for part in parts)
        tokens = sum(part.packed.tokens for part in parts)
        result.tokens += tokens
        result.computed_tokens += sum(part.packed.computed for part in parts)
        result.padding += sum(part.packed.padding for part in parts)
        result.losses.append(loss)
        for name, value in measured.items():
            result.measured.setdefault(name, []).append(value)
        result.times.append(round(result.seconds, 4))
        rate = result.tokens / max(result.seconds, 1e-9)
        return StepMetrics(self.step, self.steps, loss, norm, lr, tokens, result.seconds, rate, dict(measured))

    def _not_finite(self, loss: float, parts: list[Batch]) -> str:
        """Which rows did it: those whose own loss is not finite, or all of the step's if it is the gradient."""
        bad = [row for part in parts for row in part.rows]
        if not math.isfinite(loss):
            bad = self._rows_without_loss() or bad
        kept = self.folder / FILE
        what = "loss" if not math.isfinite(loss) else "gradient"
        where = f"the last good checkpoint is kept in {self.folder}" if kept.is_file() else "no checkpoint was due yet"
        return (
            f"The {what} is not finite at step {self.step + 1}. Rows of that step, by line: "
            f"{', '.join(map(str, sorted(bad)))}. The step was not taken; {where}. Look at these rows, or lower the "
            "learning rate (--lr)."
        )

    @torch.no_grad()
    def _rows_without_loss(self) -> list[int]:
        found = []
        for index in self._indices():  # those of the step, which is not counted yet
            alone = self.objective.collate([self.examples[index]]).to(self.customized.base.device)
            with self.customized.active():
                total = self.objective.loss(self.customized, alone).total
            if not torch.isfinite(total):
                found += alone.rows
        return found


def _set_training(customized: Customized, on: bool) -> None:
    """Dropout of the effects; the base's own dropout only where the base itself is trained."""
    customized.customization.train(on)
    if customized.moves_base:
        customized.base.model.train(on)


def _checksum(model: torch.nn.Module) -> list[int]:
    """A fast sum of each tensor's bits, computed where the tensor lies if torch can sum there."""
    sums = []
    for parameter in model.parameters():
        tensor = parameter.detach() if parameter.device.type in _SUMS_BITS else parameter.detach().cpu()
        sums.append(int(torch.hash_tensor(tensor).view(torch.int64)))
    return sums


@contextlib.contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C into a wish to stop after the step; the second one stops at once."""
    asked = False

    def on_interrupt(_signal: int, _frame: Any) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    try:
        previous = signal.signal(signal.SIGINT, on_interrupt)
    except ValueError:  # not the main thread: whoever owns it handles Ctrl-C
        yield lambda: False
        return
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGINT, previous)
