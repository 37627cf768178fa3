"""Virtual tokens as plain embeddings, for servers that take a prompt as embeddings (vLLM's ``prompt_embeds``)."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from tunescope import storage
from tunescope.bank.merge import refuse_heads
from tunescope.errors import BankError
from tunescope.methods import Customized
from tunescope.methods.effects import SoftPrompt

FILE, TEMPLATE = "prompt_embeds.safetensors", "template.json"


def export_prompt_embeds(customized: Customized, folder: Path) -> Path:
    """Write a new folder with ``prompt_embeds`` [virtual_tokens, hidden] in the base's precision, and the template.

    Args:
        customized: prompt tuning or p-tuning, alone.
        folder: to write; it must not exist.

    Raises:
        BankError: another method, or one beside it.
    """
    refuse_heads(customized, "a file of embeddings")
    effects = [effect for layer in customized.customization.layers for effect in layer.effects.values()]
    if len(effects) != 1 or not isinstance(effects[0], SoftPrompt):
        raise BankError(f"Only virtual tokens are embeddings, and this is {customized.method.name}.")
    if customized.template.virtual_splits:
        raise BankError("Its virtual tokens stand at marked places of its template, not before the text as these do.")
    table = effects[0].table().detach().to(customized.base.dtype).cpu().contiguous()
    with storage.atomic_folder(folder) as partial:
        save_file({"prompt_embeds": table.clone(memory_format=torch.contiguous_format)}, partial / FILE)
        shown = json.dumps(customized.template.model_dump(mode="json"), ensure_ascii=False, indent=1)
        (partial / TEMPLATE).write_text(shown + "\n", encoding="utf-8")
    return folder / FILE
