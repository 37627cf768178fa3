"""A few logits kept with an entry, so that a change in what it computes is seen."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from tunescope.base.device import dtype_name
from tunescope.methods import Customized

# Enough positions and vocabulary entries that no change of the computation goes unseen, in a few kilobytes.
_TOKENS, _ENTRIES = 16, 64


def check_logits(customized: Customized) -> torch.Tensor:
    """Some logits of a fixed text after the virtual tokens, [tokens, entries] in float32."""
    vocabulary = customized.base.model.config.get_text_config().vocab_size
    text = [(37 * i + 11) % min(vocabulary, 256) for i in range(_TOKENS)]
    virtual = customized.template.virtual_ids
    with torch.inference_mode(), customized.active() as base:
        ids = torch.tensor([virtual + text], device=base.device)
        logits = base.forward(ids, torch.ones_like(ids))[0, len(virtual) :]
    entries = torch.linspace(0, logits.shape[-1] - 1, min(_ENTRIES, logits.shape[-1])).long()
    return logits[:, entries.to(logits.device)].float().cpu()


def save_check(customized: Customized, path: Path) -> None:
    """Keep some logits in a file, with the precision they were computed in."""
    save_file(
        {"logits": check_logits(customized).contiguous()},
        path,
        metadata={"dtype": dtype_name(customized.base.dtype)},
    )
