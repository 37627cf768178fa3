"""Checkpoints: one safetensors file, replaced atomically, that holds everything a run needs to go on as if unbroken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tunescope.base.device import random_states, set_random_states
from tunescope.errors import TrainingError
from tunescope.tensor_files import read_tensors, write_tensors
from tunescope.training.optimizer import Optimizer

FILE = "checkpoint.safetensors"


def save_checkpoint(folder: Path, optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Write parameters, optimizer moments, random states and ``state`` (JSON values) as one file with a checksum.

    The file before it stays until the new one is complete.
    """
    states = random_states(optimizer.device)
    tensors = {**optimizer.tensors(), **{f"random.{kind}": state for kind, state in states.items()}}
    write_tensors(folder / FILE, tensors, {"state": json.dumps(state)})


def has_checkpoint(folder: Path) -> bool:
    """Whether there is something to go on from."""
    return (folder / FILE).is_file()


def load_checkpoint(folder: Path, optimizer: Optimizer) -> dict[str, Any] | None:
    """Restore what ``save_checkpoint`` wrote, in place; returns its ``state``, or None where there is no checkpoint.

    Raises:
        TrainingError: the file is damaged or belongs to another method.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        tensors, texts = read_tensors(path)
        state: dict[str, Any] = json.loads(texts["state"])
        optimizer.load_tensors(tensors)
        states = {name.removeprefix("random."): state for name, state in tensors.items()}
        set_random_states(optimizer.device, states)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise TrainingError(
            f"The checkpoint {path} is damaged or of another method ({error}). Start over with --restart; nothing else "
            "is lost."
        ) from error
    return state
