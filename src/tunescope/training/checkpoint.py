"""Checkpoints: one safetensors file, replaced atomically, that holds everything a run needs to go on as if unbroken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from tunescope import storage
from tunescope.errors import TrainingError
from tunescope.methods import Customized
from tunescope.training.optimizer import trained_parameters

_FILE = "checkpoint.safetensors"


def save_checkpoint(
    folder: Path, customized: Customized, optimizer: torch.optim.Optimizer, state: dict[str, Any]
) -> None:
    """Write parameters, optimizer moments, random states and ``state`` (JSON values) as one file.

    The file before it stays until the new one is complete.
    """
    tensors: dict[str, torch.Tensor] = {"random.cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors["random.cuda"] = torch.cuda.get_rng_state()
    for name, parameter in trained_parameters(customized).items():
        tensors[f"parameter.{name}"] = parameter.detach().cpu().contiguous()
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{key}.{name}"] = torch.as_tensor(value).cpu().contiguous()
    folder.mkdir(parents=True, exist_ok=True)
    storage.atomic_write(folder / _FILE, save(tensors, metadata={"state": json.dumps(state)}))


def load_checkpoint(folder: Path, customized: Customized, optimizer: torch.optim.Optimizer) -> dict[str, Any] | None:
    """Restore what ``save_checkpoint`` wrote, in place; returns its ``state``, or None where there is no checkpoint.

    Raises:
        TrainingError: the file is damaged or belongs to another method.
    """
    path = folder / _FILE
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (safe_open is no dict)
            state = json.loads(file.metadata()["state"])
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise TrainingError(
            f"The checkpoint {path} is damaged ({error}). Start over with --restart; nothing else is lost."
        ) from error
    for name, parameter in trained_parameters(customized).items():
        if f"parameter.{name}" not in tensors:
            raise TrainingError(f"The checkpoint {path} lacks {name}: it is of another method. Use --restart.")
        parameter.data.copy_(tensors[f"parameter.{name}"])
        moments = {
            key: tensors[f"optimizer.{key}.{name}"].to(parameter.device)
            for key in ("exp_avg", "exp_avg_sq")
            if f"optimizer.{key}.{name}" in tensors
        }
        if moments:
            optimizer.state[parameter] = {"step": tensors[f"optimizer.step.{name}"], **moments}
    torch.set_rng_state(tensors["random.cpu"])
    if "random.cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["random.cuda"])
    return state
