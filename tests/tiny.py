"""Tiny random bases of every supported architecture, made in memory: no download, milliseconds each.

    from tests.tiny import ARCHITECTURES, tiny_base

    base = tiny_base("gpt2")

Bases are made once in a process and shared: they are frozen, and a test that moves one would break others.
"""

from __future__ import annotations

import functools
import os
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from tunescope.base import Base
from tunescope.base.attention import kind_for
from tunescope.base.quantized import split_name

# Where tiny bases lie: by TUNESCOPE_TEST_DEVICE=cuda the tests run on another device.
DEVICE = os.environ.get("TUNESCOPE_TEST_DEVICE", "cpu")
CONTEXT = 512
WINDOW = 12
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>")
VOCABULARY = 256 + len(SPECIAL)

# Like ChatML (SmolLM2, Qwen): every turn between two markers, no system turn of its own accord.
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "bos_token_id": 256,
    "eos_token_id": 256,
    "pad_token_id": 259,
}
_LLAMA: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
}
_GPT_NEOX: dict[str, Any] = {k: v for k, v in _LLAMA.items() if k != "num_key_value_heads"}
_FALCON: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "ffn_hidden_size": 48,
    "max_position_embeddings": CONTEXT,
}

# Name -> (configuration class, what differs from its defaults).
_CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {**_LLAMA, "tie_word_embeddings": True}),
    "mistral": ("MistralConfig", {**_LLAMA, "sliding_window": WINDOW, "head_dim": 8}),
    "qwen2": ("Qwen2Config", _LLAMA),
    "qwen3": ("Qwen3Config", {**_LLAMA, "head_dim": 16}),
    "gemma2": (
        "Gemma2Config",
        {
            **_LLAMA,
            "head_dim": 8,
            "query_pre_attn_scalar": 8,
            "sliding_window": WINDOW,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 5.0,
        },
    ),
    "gemma3_text": (
        "Gemma3TextConfig",
        {
            **_LLAMA,
            "head_dim": 8,
            "query_pre_attn_scalar": 8,
            "sliding_window": WINDOW,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
    "phi3": ("Phi3Config", _LLAMA),
    "gpt2": ("GPT2Config", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": CONTEXT}),
    "gpt_neox": ("GPTNeoXConfig", _GPT_NEOX),
    "opt": (
        "OPTConfig",
        {**_GPT_NEOX, "ffn_dim": 48, "word_embed_proj_dim": 32},
    ),
    "mixtral": (
        "MixtralConfig",
        {**_LLAMA, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
    ),
    # Fused projections in three orders: one key-value head for all, one a group, and one a head beside linear biases.
    "falcon": ("FalconConfig", _FALCON),
    "falcon_grouped": ("FalconConfig", {**_FALCON, "new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon_alibi": ("FalconConfig", {**_FALCON, "multi_query": False, "parallel_attn": False, "alibi": True}),
    "bloom": ("BloomConfig", {"hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "starcoder2": ("Starcoder2Config", {**_LLAMA, "sliding_window": None}),
    "cohere": ("CohereConfig", {**_LLAMA, "logit_scale": 0.5, "use_qk_norm": True}),
    "granite": (
        "GraniteConfig",
        {
            **_LLAMA,
            "embedding_multiplier": 3.0,
            "logits_scaling": 2.0,
            "residual_multiplier": 0.5,
            "attention_multiplier": 0.3,
        },
    ),
    "olmo2": ("Olmo2Config", _LLAMA),
    "smollm3": ("SmolLM3Config", {**_LLAMA, "no_rope_layers": [1, 0]}),
    "stablelm": ("StableLmConfig", {**_LLAMA, "partial_rotary_factor": 0.5}),
}

WHOLE: list[str] = list(_CONFIGS)
# And two of them with their linear maps in 4 and 8 bits, named as a base is.
ARCHITECTURES: list[str] = [*WHOLE, "llama:nf4", "phi3:int8"]


def tiny_tokenizer(*, chat: bool = True) -> PreTrainedTokenizerFast:
    """One token a byte, and four special ones; any text survives encoding and decoding."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL))
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=SPECIAL[0],
        eos_token=SPECIAL[0],
        pad_token=SPECIAL[3],
        additional_special_tokens=list(SPECIAL[1:3]),
        model_max_length=CONTEXT,
    )
    fast.chat_template = CHAT_TEMPLATE if chat else None
    return fast


def tiny_config(arch: str = "llama") -> Any:
    """The transformers configuration of a tiny model."""
    kind, values = _CONFIGS[split_name(arch)[0]]
    return getattr(transformers, kind)(**{**_COMMON, **values})


def tiny_model(arch: str = "llama", *, attention: str | None = None, seed: int = 0) -> Any:
    """A transformers model in float32 with weights large enough that every part of it matters to the logits.

    Args:
        arch: one of ``ARCHITECTURES``.
        attention: its attention implementation; by default the one that ``load_base`` takes on a CPU.
        seed: of the weights.
    """
    config = tiny_config(arch)
    kind = attention or kind_for(config, torch.device("cpu"))
    model = AutoModelForCausalLM.from_config(config, attn_implementation=kind, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # biases and norms: near what they begin as, but no two alike
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
            else:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * parameter.shape[-1] ** -0.5)
    return model.eval()


def tiny_base(
    arch: str = "llama", *, chat: bool = True, dtype: torch.dtype = torch.float32, device: str = DEVICE
) -> Base:
    """A tiny frozen base: hidden 32, 2 layers, 260 tokens, a context of 512; the same object at every call."""
    return _tiny_base(arch, chat, dtype, device)


@functools.cache  # by all of its arguments, given or not
def _tiny_base(arch: str, chat: bool, dtype: torch.dtype, device: str) -> Base:
    attention = kind_for(tiny_config(arch), torch.device(device))
    model = tiny_model(arch, attention=attention).to(device)
    quantization = split_name(arch)[1]
    return Base(model, tiny_tokenizer(chat=chat), name=f"tiny-{arch}", dtype=dtype, quantization=quantization)
