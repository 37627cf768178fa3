"""A customization at rest: a folder with its tensors and its record. Loading one that does not fit is an error.

Effects are kept in ``customization.safetensors``. After full fine-tuning the folder is a transformers model folder that
``AutoModelForCausalLM.from_pretrained`` opens; what an objective added (a reward model's head) lies beside it. Nothing
is ever pickled.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from tunescope import storage
from tunescope.bank.check import save_check
from tunescope.bank.record import Record
from tunescope.base import Base, load_base
from tunescope.base.loading import Dtype
from tunescope.errors import BankError, TunescopeError, UnknownNameError
from tunescope.methods import Customized, at_rest
from tunescope.methods.effects import Effect
from tunescope.methods.registry import METHODS
from tunescope.objectives.registry import OBJECTIVES

RECORD, TENSORS, MODEL, CHECK = (
    "customization.json",
    "customization.safetensors",
    "model.safetensors",
    "check.safetensors",
)


def save(customized: Customized, folder: Path, record: Record, *, extra: dict[str, str] | None = None) -> Path:
    """Write a customization, all of it or nothing.

    Args:
        customized: trained, in evaluation mode.
        folder: the entry; replaced if it is one already.
        record: its certificate; the tensors' hash is filled in here.
        extra: further text files by name, for example ``metrics.jsonl``.
    """
    with storage.atomic_folder(folder) as partial:
        if customized.moves_base:
            customized.base.model.save_pretrained(partial)
            customized.base.tokenizer.save_pretrained(partial)
        if tensors := customized.customization.tensors():
            save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, partial / TENSORS)
        if files := [partial / name for name in (MODEL, TENSORS) if (partial / name).is_file()]:
            record = record.model_copy(update={"tensors_sha256": storage.sha256_file(*files)})
        save_check(customized, partial / CHECK)
        for name, text in (extra or {}).items():
            (partial / name).write_text(text, encoding="utf-8")
        (partial / RECORD).write_text(record.model_dump_json(indent=2), encoding="utf-8")
    return folder


def read_record(folder: Path) -> Record:
    """The certificate of an entry.

    Raises:
        BankError: no entry there, or its record is damaged.
    """
    path = folder / RECORD
    if not path.is_file():
        near = [entry.name for entry in list_entries(folder.parent)] if folder.parent.is_dir() else []
        if near:
            raise BankError(str(UnknownNameError(f"entry of the bank {folder.parent}:", folder.name, near)))
        raise BankError(f"{folder} is not a bank entry: it has no {RECORD}. Train one with --out {folder}.")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError("not an object")
        return Record.parse(values)
    except (ValueError, TunescopeError) as error:
        raise BankError(f"{path} is damaged or was written by another version of tunescope: {error}") from error


def write_card(folder: Path, card: dict[str, object]) -> None:
    """Keep what was measured of an entry in its record."""
    record = read_record(folder).model_copy(update={"card": card})
    storage.atomic_write(folder / RECORD, record.model_dump_json(indent=2))


def list_entries(bank: Path) -> list[Path]:
    """The entries of a bank folder, by name."""
    return sorted(path.parent for path in bank.glob(f"*/{RECORD}") if not path.parent.name.startswith("."))


def load(folder: Path, base: Base | str | None = None) -> Customized:
    """Load an entry onto its base.

    Args:
        folder: the entry.
        base: the base to run on; by default the one the record names.

    Raises:
        BankError: another base, damaged or missing tensors, tensors of another shape.
    """
    record = read_record(folder)
    origin = load_base(base if base is not None else record.base.name)
    if differing := record.base.fingerprint.differences(origin.fingerprint):
        raise BankError(
            f"{folder} was made for {record.base.name} (fingerprint {record.base.fingerprint.short}), but "
            f"{origin.name} (fingerprint {origin.fingerprint.short}) has another {' and '.join(differing)}. Use the "
            "base it was made for, or train it again on this one."
        )
    method = METHODS.load(record.method).parse(record.method_settings)
    customized = at_rest(origin, method, record.template, record.labels, _added(record, origin))
    needed = customized.customization.tensors()
    if needed and record.tensors_sha256 is None:
        raise BankError(f"{folder} has no tensors, but {record.method} needs some: the entry is damaged.")
    _check_tensors(
        [folder / name for name, there in ((MODEL, customized.moves_base), (TENSORS, bool(needed))) if there], record
    )
    if needed:
        try:
            customized.customization.load_tensors(load_file(folder / TENSORS, device=str(origin.device)))
        except (SafetensorError, BankError) as error:
            raise BankError(f"{folder / TENSORS}: {error}") from error
    if customized.moves_base:
        dtype: Dtype = "float32" if origin.dtype == torch.float32 else "bfloat16"
        customized.base = load_base(folder, dtype=dtype, device=origin.device)
    return customized


def _added(record: Record, base: Base) -> dict[str, Effect]:
    """The effects that the objective brought."""
    if record.objective is None:
        return {}
    return OBJECTIVES.load(record.objective).parse(record.objective_settings).effects(base, torch.Generator())


def _check_tensors(files: list[Path], record: Record) -> None:
    for path in files:
        if not path.is_file():
            raise BankError(f"{path} is missing: the entry is damaged. Train it again.")
    if files and record.tensors_sha256 is not None and storage.sha256_file(*files) != record.tensors_sha256:
        names = " and ".join(map(str, files))
        raise BankError(
            f"{names} {'are' if len(files) > 1 else 'is'} not what was saved (the SHA-256 differs from the record's): "
            "corrupt or changed. Copy it again or train it again."
        )


def _check_finite(base: Base, path: Path) -> None:
    """Refuse weights of full fine-tuning that are not finite."""
    for name, parameter in base.model.named_parameters():
        if not bool(parameter.isfinite().all()):
            raise BankError(f"{path}: tensor {name} holds values that are not finite. Train it again.")


def size_mb(folder: Path) -> float:
    """Bytes of the entry's weights in 1e6: what a user would have to store and move."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors") if path.name != CHECK) / 1e6
