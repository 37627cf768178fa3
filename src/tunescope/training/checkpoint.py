"""Checkpoints: one safetensors file, replaced atomically, that holds everything a run needs to go on as if unbroken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from tunescope.errors import TrainingError
from tunescope.tensor_files import read_tensors, write_tensors
from tunescope.training.optimizer import Optimizer

FILE = "checkpoint.safetensors"


def save_checkpoint(folder: Path, optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Write parameters, optimizer moments, random states and ``state`` (JSON values) as one file with a checksum.

    The file before it stays until the new one is complete.
    """
    tensors = {**optimizer.tensors(), "random.cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors["random.cuda"] = torch.cuda.get_rng_state()
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
        torch.set_rng_state(tensors["random.cpu"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise TrainingError(
            f"The checkpoint {path} is damaged or of another method ({error}). Start over with --restart; nothing else "
            "is lost."
        ) from error
    if "random.cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["random.cuda"])
    return state
