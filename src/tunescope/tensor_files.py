"""Safetensors files that carry a checksum of all they hold, so that damage is found when they are read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from tunescope import storage

_SUM = "sha256"


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors and texts as one file, wholly or not at all, with a SHA-256 over both. No tensor is copied for it.

    Raises:
        TunescopeError: the disk is full or the folder cannot be written.
    """
    metadata = dict(metadata or {})
    checksum = _checksum(tensors, metadata)
    with storage.atomic_file(path) as temporary:
        save_file(dict(tensors), temporary, metadata={**metadata, _SUM: checksum})


def read_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """What ``write_tensors`` wrote: tensors, on the CPU, and texts.

    Raises:
        ValueError: the file is missing, damaged, or was not written by ``write_tensors``.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (safe_open is no dict)
            metadata = dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise ValueError(str(error)) from error
    if metadata.pop(_SUM, None) != _checksum(tensors, metadata):
        raise ValueError("its SHA-256 differs from what was written")
    return tensors, metadata


def _checksum(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(raw.numpy().data)
    return digest.hexdigest()
