"""A LoRA in llama.cpp's format: one GGUF file for ``llama-cli --lora`` or ``llama-server --lora``."""

from __future__ import annotations

from pathlib import Path

import gguf
import torch

from tunescope import storage
from tunescope.bank.assemble import LoRAPart, lora_parts
from tunescope.bank.merge import refuse_heads
from tunescope.base import Base, Site
from tunescope.errors import BankError
from tunescope.methods import Customized, LoRA

FILE = "lora.gguf"
# model_type of transformers: the architecture's name in GGUF, and whether the rows of q and k lie in another order
# there (llama.cpp rotates neighbors, transformers the two halves of a head).
_ARCHITECTURES = {
    "llama": ("llama", True),
    "mistral": ("llama", True),
    "qwen2": ("qwen2", False),
    "qwen3": ("qwen3", False),
    "gemma2": ("gemma2", False),
    "gemma3_text": ("gemma3", False),
}


def export_gguf(customized: Customized, folder: Path) -> Path:
    """Write ``lora.gguf`` into a new folder.

    llama.cpp adds user's scale · alpha / rank · B A; alpha is 1 here, and the LoRA's own scaling lies in B.

    Args:
        customized: a LoRA without DoRA, with those it starts from.
        folder: to write; it must not exist.

    Raises:
        BankError: another method, or a base whose layers this format names otherwise.
    """
    refuse_heads(customized, "llama.cpp's format")
    parts = lora_parts(customized) if isinstance(customized.method, LoRA) and not customized.method.dora else {}
    if not parts:
        raise BankError(
            f"llama.cpp's adapters are plain LoRAs, and this is {customized.method.name}. --as-lora RANK makes one of "
            "IA3 or DoRA, with its error."
        )
    base = customized.base
    config = base.model.config.get_text_config()
    if config.model_type not in _ARCHITECTURES:
        raise BankError(
            f"Adapters in GGUF are written for {', '.join(_ARCHITECTURES)}, and this base is {config.model_type}. "
            "Write a merged model with --to transformers, and convert that."
        )
    architecture, _ = _ARCHITECTURES[config.model_type]
    kind = next(kind for kind, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(kind, config.num_hidden_layers)
    with storage.atomic_folder(folder) as partial:
        writer = gguf.GGUFWriter(partial / FILE, architecture)
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, 1.0)
        for site in base.sites.all:
            if site.key in parts:
                _add(writer, names, base, site, parts[site.key])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return folder / FILE


def _add(writer: gguf.GGUFWriter, names: gguf.TensorNameMap, base: Base, site: Site, part: LoRAPart) -> None:
    path = site.path[site.path.index("layers.") :]  # multimodal wrappers put names of their own before it
    name = names.get_name(f"model.{path}")
    if name is None or site.part is not None:
        raise BankError(f"llama.cpp's format has no name for {site.path}. Write a merged model with --to transformers.")
    B = part.B.float() * part.scaling * part.rank
    config = base.model.config.get_text_config()
    if _ARCHITECTURES[config.model_type][1] and site.name in ("q", "k"):
        heads = config.num_attention_heads if site.name == "q" else config.num_key_value_heads
        B = interleaved(B, heads)
    writer.add_tensor(f"{name}.weight.lora_a", part.A.float().contiguous().numpy())
    writer.add_tensor(f"{name}.weight.lora_b", B.contiguous().numpy())


def interleaved(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """[out, any] with each head's two halves of rows taken by turns, as llama.cpp keeps q and k."""
    out, width = rows.shape
    return rows.reshape(heads, 2, out // heads // 2, width).transpose(1, 2).reshape(out, width)
