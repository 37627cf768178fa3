"""An entry for the same base in other bits: trained beside weights in nf4, used on them as they are, or the other way.

What it learned, it learned beside other weights, so it answers otherwise there. The new entry's certificate names the
base it is for now, keeps nothing that was measured on the old one, and says where it comes from.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file

from tunescope.bank.entry import CHECK, load, read_record, save
from tunescope.bank.kept_logits import check_outputs
from tunescope.bank.names import entry_folder
from tunescope.bank.record import BaseRecord
from tunescope.base import Base
from tunescope.base.device import dtype_name
from tunescope.errors import BankError
from tunescope.methods.registry import METHODS


@dataclass(frozen=True)
class Rebased:
    """What another base changed.

    Attributes:
        folder: the new entry.
        max_error: largest absolute difference of the outputs kept with the entry from those on the new base; None for
            an entry without kept ones.
        mean_error: their mean.
        mean_output: the kept outputs' mean size, to compare them with.
    """

    folder: Path
    max_error: float | None
    mean_error: float | None
    mean_output: float | None


def rebase(entry: str | Path, base: Base, out: Path) -> Rebased:
    """Write a copy of an entry that is for the same base in other bits.

    Args:
        entry: to copy; it stays as it is.
        base: the same, quantized otherwise or not at all.
        out: the new entry.

    Raises:
        BankError: the base is another, or the very same; full fine-tuning, whose entry is a base of its own.
        TunescopeError: ``out`` is taken, or another run writes there.
    """
    entry, record = entry_folder(entry), read_record(entry)
    if not record.base.fingerprint.differs_in_bits_alone(base.fingerprint):
        differing = record.base.fingerprint.differences(base.fingerprint)
        why = f"{base.name} has another {' and '.join(differing)}" if differing else f"{base.name} is that very base"
        raise BankError(
            f"{entry} was made for {record.base.name}, and {why}. Give the same base in other bits, such as "
            f"{record.base.name}:nf4."
        )
    if METHODS.load(record.method).trains == "base":
        raise BankError(f"{entry} is a base of its own: quantize it by its name, --base {entry}:nf4.")
    customized = load(entry, base, other_bits=True)
    found: tuple[float | None, ...] = (None, None, None)
    if (entry / CHECK).is_file():
        kept, now = load_file(entry / CHECK), check_outputs(customized)
        before, after = kept["logits"], now["logits"]
        found = (after - before).abs().max().item(), (after - before).abs().mean().item(), before.abs().mean().item()
    changed = {
        "base": BaseRecord(name=base.name, fingerprint=base.fingerprint),
        "dtype": dtype_name(base.dtype),
        "training": record.training | {"rebased_from": record.base.name},
        "card": None,
    }
    return Rebased(save(customized, out, record.model_copy(update=changed)), *found)
