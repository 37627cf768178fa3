"""Metrics to accelerate's trackers (TensorBoard, Weights & Biases, MLflow …) when the user names some."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tunescope.bank import Record
from tunescope.errors import TrainingError, UnknownNameError
from tunescope.training.metrics import StepMetrics


@contextmanager
def tracked(names: tuple[str, ...], folder: Path, record: Record) -> Iterator[Callable[[StepMetrics], None]]:
    """A function that tells the named trackers of a step; with no names it does nothing.

    Raises:
        UnknownNameError: a tracker accelerate does not have.
        TrainingError: a tracker whose package is not installed.
    """
    if not names:
        yield lambda metrics: None
        return
    from accelerate import Accelerator
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    known = {str(name.value if hasattr(name, "value") else name) for name in LOGGER_TYPE_TO_CLASS}
    for name in names:
        if name not in known:
            raise UnknownNameError("tracker", name, known)
        if name not in {str(getattr(found, "value", found)) for found in get_available_trackers()}:
            raise TrainingError(f"Tracker {name} needs its package: pip install {name}.")
    accelerator = Accelerator(log_with=list(names), project_dir=str(folder.parent.parent / "tracking"))
    settings = {f"method.{key}": value for key, value in record.method_settings.items()}
    settings |= {f"objective.{key}": value for key, value in record.objective_settings.items()}
    settings |= {f"train.{key}": value for key, value in (record.train_settings or {}).items()}
    accelerator.init_trackers(record.method, config={key: str(value) for key, value in settings.items()})
    try:
        yield lambda metrics: accelerator.log(metrics.values(), step=metrics.step)
    finally:
        accelerator.end_training()
