"""Whether an entry still is what was saved: its files, its base, its template, and what it computes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from tunescope import storage
from tunescope.bank.entry import CHECK, load, read_record
from tunescope.bank.kept_logits import check_outputs
from tunescope.bank.names import RECORD, entry_folder
from tunescope.base import Base
from tunescope.base.device import dtype_name
from tunescope.errors import BankError

# Largest difference of a logit or a head's output that rounding explains: other kernels sum in another order.
_TOLERANCE = {"float32": 1e-3, "bfloat16": 0.5}


@dataclass(frozen=True)
class Verified:
    """What was checked.

    Attributes:
        folder: the entry.
        max_error: largest difference between the logits and head outputs kept with the entry and those it computes
            now; None for an entry without kept ones.
        dtype: precision in which it computed now.
        sealed: whether every file was compared with its checksum. An entry whose marker is missing, as it is hidden and
            some copies leave it out, has a checksum of its tensors only.
    """

    folder: Path
    max_error: float | None
    dtype: str
    sealed: bool


def verify(folder: str | Path, base: Base | str | None = None) -> Verified:
    """Check an entry: every file, fingerprint of the base, names of the tensors, template, and the logits and head
    outputs it gives.

    Raises:
        BankError: the first thing that does not hold.
    """
    folder = entry_folder(folder)
    record = read_record(folder)
    _check_files(folder, but=(RECORD, CHECK))  # what is wrong with these two is said better here
    customized = load(folder, base)
    known = set(range(len(customized.base.tokenizer)))
    if unknown := [token for token in record.template.stop if token not in known]:
        raise BankError(f"{folder}: its stop token {unknown[0]} is not in the base's vocabulary.")
    dtype = dtype_name(customized.base.dtype)
    path = folder / CHECK
    if not path.is_file():
        _check_files(folder)
        return Verified(folder, None, dtype, storage.is_marked(folder))
    try:
        kept = load_file(path)
    except (SafetensorError, OSError) as error:
        raise BankError(f"{path} is damaged ({error}).") from error
    if "logits" not in kept:
        raise BankError(f"{path} is damaged (it holds no logits).")
    now = check_outputs(customized)
    # Entries of earlier versions have kept nothing of their heads.
    if any(name not in now or values.shape != now[name].shape for name, values in kept.items()):
        raise BankError(f"{path} holds outputs of another shape: it belongs to another entry.")
    errors = [(values - now[name]).abs().max() for name, values in kept.items()]
    error_size = torch.stack(errors).max().item()  # NaN if any is
    allowed = max(_TOLERANCE[dtype], _TOLERANCE.get(record.dtype or dtype, 0.0))
    if not error_size <= allowed:
        raise BankError(
            f"{folder} computes other outputs than when it was saved (largest difference {error_size:.3g}, at most "
            f"{allowed:g} in {dtype} is rounding). Its files are as saved, so the library that runs it has changed."
        )
    _check_files(folder)
    return Verified(folder, error_size, dtype, storage.is_marked(folder))


def _check_files(folder: Path, but: Sequence[str] = ()) -> None:
    if damage := storage.broken(folder, but):
        raise BankError(f"{damage}: damaged or changed since. Copy the entry again or train it again.")
