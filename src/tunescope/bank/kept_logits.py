"""A few logits and head outputs kept with an entry, so that a change in what it computes is seen."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from tunescope.base.device import dtype_name
from tunescope.methods import Customized

# Enough positions and vocabulary entries that no change of the computation goes unseen, in a few kilobytes.
_TOKENS, _ENTRIES = 16, 64


def check_outputs(customized: Customized) -> dict[str, torch.Tensor]:
    """What a customization computes for a fixed text after the virtual tokens, in float32: ``logits`` [tokens,
    entries], some of each token's, and what each of its heads gives, [tokens, outputs] by name (``head.reward``).
    """
    vocabulary = customized.base.model.config.get_text_config().vocab_size
    text = [(37 * i + 11) % min(vocabulary, 256) for i in range(_TOKENS)]
    virtual = customized.template.virtual_ids
    with torch.inference_mode(), customized.active() as base:
        ids = torch.tensor([virtual + text], device=base.device)
        hidden = base.hidden(ids, torch.ones_like(ids))[0, len(virtual) :]
        logits = base.vocabulary_head(hidden)
        found = {f"head.{name}": head(hidden) for name, head in customized.customization.heads.items()}
    entries = torch.linspace(0, logits.shape[-1] - 1, min(_ENTRIES, logits.shape[-1])).long()
    found["logits"] = logits[:, entries.to(logits.device)].float()
    return {name: values.cpu().contiguous() for name, values in found.items()}


def save_check(customized: Customized, path: Path) -> None:
    """Keep ``check_outputs`` in a file, with the precision they were computed in."""
    save_file(check_outputs(customized), path, metadata={"dtype": dtype_name(customized.base.dtype)})
