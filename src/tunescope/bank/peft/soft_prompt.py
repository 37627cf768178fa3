"""Prompt tuning and p-tuning in PEFT's format: one table of virtual tokens, before the text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from tunescope.bank.peft.config import PeftConfig
from tunescope.bank.peft.modules import Adapter
from tunescope.base import Base
from tunescope.data.template import Template
from tunescope.errors import BankError
from tunescope.methods import Customized, PromptTuning, PTuning, at_rest
from tunescope.methods.customization import some
from tunescope.methods.effects import SoftPrompt


def soft_prompt_to_peft(customized: Customized, method: PromptTuning | PTuning) -> Adapter:
    """The table of virtual tokens; p-tuning's encoder is not needed any more.

    Raises:
        BankError: virtual tokens at several places of the text.
    """
    if method.splits:
        raise BankError("PEFT's format has virtual tokens before the text only, and these stand at several places.")
    effect = customized.customization.effects["embedding.prefix"]
    assert isinstance(effect, SoftPrompt)
    table = effect.table().detach()
    text = customized.base.model.config.get_text_config()
    config: dict[str, Any] = {
        "peft_type": "PROMPT_TUNING" if isinstance(method, PromptTuning) else "P_TUNING",
        "num_virtual_tokens": method.virtual_tokens,
        "token_dim": table.shape[1],
        "num_transformer_submodules": 1,
        "num_attention_heads": text.num_attention_heads,
        "num_layers": text.num_hidden_layers,
    }
    if isinstance(method, PTuning):
        config |= {
            "encoder_reparameterization_type": method.encoder.upper(),
            "encoder_hidden_size": method.encoder_hidden or table.shape[1],
            "encoder_num_layers": method.encoder_layers,
        }
    else:
        config["prompt_tuning_init"] = "RANDOM"
    return config, {"prompt_embeddings": table}


def soft_prompt_from_peft(
    config: PeftConfig, tensors: Mapping[str, torch.Tensor], base: Base, template: Template
) -> Customized:
    """A table of virtual tokens that PEFT wrote.

    Raises:
        BankError: the table is missing, has another shape, or is not all there is.
    """
    if unexpected := sorted(set(tensors) - {"prompt_embeddings"}):
        raise BankError(f"Unexpected tensors: {some(unexpected)}.")
    if "prompt_embeddings" not in tensors:
        raise BankError("Missing tensor: prompt_embeddings.")
    table, width = tensors["prompt_embeddings"], base.hidden_size
    if table.ndim != 2 or not 0 < len(table) < base.context_length or table.shape[1] != width:
        raise BankError(
            f"prompt_embeddings has shape {tuple(table.shape)}, but this base needs (virtual tokens, {width}), and "
            f"fewer of them than its context of {base.context_length}."
        )
    count = table.shape[0]
    method = PromptTuning(virtual_tokens=count) if config.kind == "PROMPT_TUNING" else PTuning(virtual_tokens=count)
    template = template.model_copy(update={"virtual_tokens": count, "virtual_splits": ()})
    customized = at_rest(base, method, template)
    customized.customization.load_tensors({"embedding.prefix.embeddings": table})
    return customized
