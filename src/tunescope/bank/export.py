"""An entry in the format of other tools."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

from tunescope import storage
from tunescope.bank.as_lora import as_lora
from tunescope.bank.entry import export_model, load, read_record
from tunescope.bank.gguf import export_gguf
from tunescope.bank.merge import Merged, merge_into_base, refuse_heads
from tunescope.bank.names import entry_folder
from tunescope.bank.peft import export_peft
from tunescope.bank.prompt_embeds import export_prompt_embeds
from tunescope.base import Base, load_base
from tunescope.errors import BankError, UnknownNameError
from tunescope.locks import writing

Format = Literal["peft", "transformers", "gguf", "prompt-embeds"]


def export(
    entry: str | Path,
    folder: str | Path,
    *,
    to: Format = "peft",
    base: Base | str | None = None,
    device: str | None = None,
    rank: int | None = None,
) -> Merged | float | None:
    """Write an entry for other tools.

    Args:
        entry: of a bank.
        folder: to write; it must not exist.
        to: ``peft``, which ``PeftModel.from_pretrained`` opens; ``transformers``, a model folder with the effects in
            its weights; ``gguf``, a LoRA for llama.cpp; ``prompt-embeds``, virtual tokens as embeddings.
        base: what the entry was made for; by default the one that its record names.
        device: where to compute, of a base that is yet to be loaded; by default the accelerator if there is one.
        rank: write the nearest LoRA of this rank instead (``as_lora``), for ``peft`` and ``gguf``.

    Returns:
        how exact the merged weights are, where effects were merged; the relative error of the nearest LoRA.

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
        customized, error = load(entry, load_base(base, device=device)), None
        if rank is not None:
            if to not in ("peft", "gguf"):
                raise BankError(f"--as-lora makes a LoRA, which --to {to} does not write: leave it out.")
            customized, error = as_lora(customized, rank)
        if to == "peft":
            export_peft(customized, folder)
        elif to == "gguf":
            export_gguf(customized, folder)
        elif to == "prompt-embeds":
            export_prompt_embeds(customized, folder)
        elif customized.moves_base:
            refuse_heads(customized, "a language model's folder")
            export_model(entry, folder)
        else:
            return merge_into_base(customized, folder)
    return error
