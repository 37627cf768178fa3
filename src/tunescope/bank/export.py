"""An entry in the format of other tools."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

from tunescope import storage
from tunescope.bank.entry import export_model, load, read_record
from tunescope.bank.merge import Merged, merge_into_base, refuse_heads
from tunescope.bank.names import entry_folder
from tunescope.bank.peft import export_peft
from tunescope.base import Base, load_base
from tunescope.errors import UnknownNameError
from tunescope.locks import writing

Format = Literal["peft", "transformers"]


def export(
    entry: str | Path,
    folder: str | Path,
    *,
    to: Format = "peft",
    base: Base | str | None = None,
    device: str | None = None,
) -> Merged | None:
    """Write an entry for other tools.

    Args:
        entry: of a bank.
        folder: to write; it must not exist.
        to: ``peft``, which ``PeftModel.from_pretrained`` opens; or ``transformers``, a model folder with the effects in
            its weights.
        base: what the entry was made for; by default the one that its record names.
        device: where to compute, of a base that is yet to be loaded; by default the accelerator if there is one.

    Returns:
        how exact the merged weights are, where effects were merged.

    Raises:
        UnknownNameError: another format.
        BankError: an entry that is damaged, of another base, or that the format has no place for, with the reason.
        TunescopeError: a folder that exists, or that another run writes.
    """
    if to not in get_args(Format):
        raise UnknownNameError("format (--to)", to, get_args(Format))
    entry, folder = entry_folder(entry), Path(folder)
    with writing(folder):
        storage.check_replaceable(folder, None)
        base = base if base is not None else read_record(entry).base.name
        customized = load(entry, load_base(base, device=device))
        if to == "peft":
            export_peft(customized, folder)
        elif customized.moves_base:
            refuse_heads(customized, "a language model's folder")
            export_model(entry, folder)
        else:
            return merge_into_base(customized, folder)
    return None
