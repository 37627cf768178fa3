"""A base without its weights: what a configuration alone says of a model, however large.

Tensors of a sketch lie on torch's ``meta`` device: they have shapes and no values. What is computed of them has shapes
too, so memory and work can be counted before there is either.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv
from transformers.masking_utils import sdpa_mask

from tunescope.base import attention, sources
from tunescope.base.loading import Base, context_of, in_words
from tunescope.base.quantized import Quantization, quantize
from tunescope.base.use import Use

_FUSED = "tunescope_fused_sketch"


@dataclass(frozen=True)
class Outline:
    """What is known of a base before its weights are read.

    Attributes:
        name: as the user calls it.
        config: transformers' configuration.
        tokenizer: its own, or some words where the folder holds none.
        reads: whether the tokenizer is its own, so that texts become its tokens.
        quantization: in how many bits its linear maps are to be kept; None as they are.
    """

    name: str
    config: Any
    tokenizer: Any
    reads: bool = True
    quantization: Quantization | None = None

    @property
    def layers(self) -> int:
        """How many layers the model has."""
        return int(self.config.get_text_config().num_hidden_layers)

    @property
    def context_length(self) -> int:
        """The most tokens a text may have."""
        return context_of(self.config)

    @property
    def period(self) -> int:
        """After how many layers their kinds come again: 6 where five slide and one sees all, 1 where all are alike."""
        kinds = list(getattr(self.config.get_text_config(), "layer_types", None) or [])
        return next((n for n in range(1, len(kinds)) if kinds[n:] == kinds[:-n]), 1)

    def sketch(self, layers: int, dtype: torch.dtype, device: torch.device) -> Base:
        """A base of that many of its layers, on ``meta``, that computes by the operations it would use on ``device``.

        It has no fingerprint, as it has no weights.
        """
        from transformers import AutoModelForCausalLM

        config = copy.deepcopy(self.config)
        text = config.get_text_config()
        text.num_hidden_layers = layers
        if getattr(text, "layer_types", None):
            text.layer_types = text.layer_types[:layers]
        kind = attention.kind_for(config, device)
        if kind == "sdpa" and attention.is_replaceable(config):
            AttentionInterface.register(_FUSED, _fused)
            AttentionMaskInterface.register(_FUSED, sdpa_mask)
            kind = _FUSED
        config._attn_implementation, config._experts_implementation = kind, None
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
        if self.quantization is not None:
            quantize(model, self.quantization)
        made = object.__new__(Base)
        made.model, made.use = model.eval().requires_grad_(False), Use(self.name)
        made.tokenizer, made.name, made.folder, made.quantization = self.tokenizer, self.name, None, self.quantization
        return made


def outline(name: str) -> Outline:
    """A base's configuration and tokenizer. Weights are not read, and need not be there.

    Args:
        name: what ``load_base`` takes, or a folder with a ``config.json`` alone.

    Raises:
        BaseModelError: no configuration, or one of an architecture that is not known.
    """
    from transformers import AutoConfig, AutoTokenizer

    source = sources.resolve(name, weights=False)
    with in_words(source, "holds no configuration of a language model that can be read"):
        # Left unsaid, transformers asks on the terminal whether to run what came with the model.
        config = AutoConfig.from_pretrained(source.folder, trust_remote_code=False)
        reads = sources.has_tokenizer(source.folder)
        tokenizer = AutoTokenizer.from_pretrained(source.folder, trust_remote_code=False) if reads else _words()
    return Outline(source.name, config, tokenizer, reads, source.quantization)


def _words() -> Any:
    """A tokenizer for those who ask for any words: virtual tokens begin as some."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({f"w{number}": number for number in range(2000)}, unk_token="w0"))
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0", eos_token="w1")


def _fused(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """What sdpa computes by on a GPU: left to choose, it would take its slow way for tensors without values."""
    groups = query.shape[1] // key.shape[1]
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    if attention_mask is None:
        found = torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, 0.0, True, scale=scaling)
    else:
        bias = attention_mask.to(query.device).expand(-1, query.shape[1], -1, -1)
        found = torch.ops.aten._scaled_dot_product_efficient_attention(query, key, value, bias, True, scale=scaling)
    return found[0].transpose(1, 2), None
