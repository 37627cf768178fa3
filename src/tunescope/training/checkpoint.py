"""Checkpoints: one safetensors file, replaced atomically, that holds everything a run needs to go on as if unbroken."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from tunescope.errors import TrainingError
from tunescope.tensor_files import read_tensors, write_tensors

FILE = "checkpoint.safetensors"


def save_checkpoint(folder: Path, tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any]) -> None:
    """Write tensors (parameters, optimizer moments, random states) and ``state`` (JSON values) as one file with a
    checksum.

    The file before it stays until the new one is complete.
    """
    write_tensors(folder / FILE, dict(tensors), {"state": json.dumps(state)})


def has_checkpoint(folder: Path) -> bool:
    """Whether there is something to go on from."""
    return (folder / FILE).is_file()


def load_checkpoint(folder: Path, restore: Callable[[Mapping[str, torch.Tensor], Mapping[str, Any]], None]) -> None:
    """Give ``restore`` what ``save_checkpoint`` wrote; nothing happens where there is no checkpoint.

    Raises:
        TrainingError: the file is damaged or belongs to another method.
    """
    path = folder / FILE
    if not path.is_file():
        return
    try:
        tensors, texts = read_tensors(path)
        restore(tensors, json.loads(texts["state"]))
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise TrainingError(
            f"The checkpoint {path} is damaged or of another method ({error}). Start over with --restart; nothing else "
            "is lost."
        ) from error
