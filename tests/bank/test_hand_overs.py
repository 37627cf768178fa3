"""Entries for tools that know less: LoRAs for llama.cpp, IA3 and DoRA as LoRAs, virtual tokens as embeddings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.inference.mix import customized
from tests.tiny import tiny_base
from transformers.modeling_gguf_pytorch_utils import LlamaTensorProcessor

from tunescope.bank.as_lora import as_lora
from tunescope.bank.gguf import export_gguf, interleaved
from tunescope.bank.merge import merged_model
from tunescope.bank.prompt_embeds import export_prompt_embeds
from tunescope.base import Sites
from tunescope.errors import BankError


def adapter(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """A GGUF's fields and tensors."""
    reader = gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    return fields, {each.name: torch.from_numpy(np.array(each.data)) for each in reader.tensors}


@pytest.mark.parametrize("arch", ["llama", "mistral", "qwen2"])
@pytest.mark.parametrize("name", ["lora", "lora-all-linear"])
def test_a_lora_in_gguf_adds_what_the_lora_adds(arch: str, name: str, tmp_path: Path) -> None:
    """llama.cpp's own arithmetic on weights in llama.cpp's order, brought back by transformers' reader of GGUF."""
    made, base = customized(name, arch), tiny_base(arch)
    fields, tensors = adapter(export_gguf(made, tmp_path / "out"))
    assert fields["general.type"] == "adapter" and fields["adapter.type"] == "lora"
    assert fields["general.architecture"] == {"mistral": "llama"}.get(arch, arch)
    config = base.model.config
    merged = Sites(merged_model(base, made.customization))
    names = {"q": "attn_q", "k": "attn_k", "v": "attn_v", "o": "attn_output", "gate": "ffn_gate", "up": "ffn_up",
             "down": "ffn_down"}  # fmt: skip
    found = 0
    for site in base.sites.all:
        A = tensors.get(f"blk.{site.layer}.{names.get(site.name)}.weight.lora_a")
        if A is None:
            continue
        found += 1
        B = tensors[f"blk.{site.layer}.{names[site.name]}.weight.lora_b"]
        delta = fields["adapter.lora.alpha"] / len(A) * B @ A
        if arch != "qwen2" and site.name in ("q", "k"):
            heads = config.num_attention_heads if site.name == "q" else config.num_key_value_heads
            reverse = LlamaTensorProcessor(config=config.to_dict())._reverse_permute_weights
            delta = torch.from_numpy(np.ascontiguousarray(reverse(delta.numpy(), heads, heads)))
        assert torch.allclose(site.weight + delta, merged[site.key].weight, atol=1e-6)
    assert found * 2 == len(tensors) == 2 * len({key.rpartition(".")[0] for key in made.customization.effects})


def test_interleaving_takes_the_halves_of_a_head_by_turns() -> None:
    rows = torch.arange(8.0)[:, None]
    assert interleaved(rows, 2)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


@pytest.mark.parametrize("name", ["ia3", "adapter", "prompt-tuning", "dora"])
def test_what_llama_cpp_has_no_adapter_for(name: str, tmp_path: Path) -> None:
    with pytest.raises(BankError, match="plain LoRAs"):
        export_gguf(customized(name), tmp_path / "out")
    with pytest.raises(BankError, match="gpt2"):
        export_gguf(customized("lora", "gpt2"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["ia3", "dora", "dora+ia3", "lora"])
def test_the_nearest_lora(name: str) -> None:
    """Exact at full rank; else its error is what is stated, and grows as the rank falls."""
    made, base = customized(name), tiny_base()
    wanted = Sites(merged_model(base, made.customization))
    errors = []
    for rank in (32, 8, 2):
        near, error = as_lora(made, rank)
        found = Sites(merged_model(base, near.customization))
        keys = {key.rpartition(".")[0] for key in near.customization.effects}
        missed = sum(((found[key].weight - wanted[key].weight) ** 2).sum() for key in keys)
        whole = sum(((wanted[key].weight - base.sites[key].weight) ** 2).sum() for key in keys)
        assert error == pytest.approx(float((missed / whole) ** 0.5), abs=1e-5)
        errors.append(error)
    assert errors[0] < 1e-5 and errors[0] <= errors[1] + 1e-6 and errors[1] <= errors[2] + 1e-6
    if name == "lora":
        assert errors[2] < 1e-5  # of rank 2 it was


def test_what_is_no_change_of_weights_has_no_nearest_lora() -> None:
    with pytest.raises(BankError, match="cannot be merged"):
        as_lora(customized("adapter"), 4)
    with pytest.raises(BankError, match="bias"):
        as_lora(customized("ia3", "qwen2"), 4)


def test_virtual_tokens_as_embeddings(tmp_path: Path) -> None:
    made = customized("prompt-tuning")
    export_prompt_embeds(made, tmp_path / "out")
    table = load_file(tmp_path / "out" / "prompt_embeds.safetensors")["prompt_embeds"]
    base = made.base
    text = torch.tensor(base.tokenizer("hello")["input_ids"])
    with torch.no_grad():
        whole = torch.cat([table, base.embedding(text)])[None]
        found = base.model(inputs_embeds=whole).logits[0, -1]
        ids = torch.tensor([[*made.template.virtual_ids, *text.tolist()]])
        with made.customization.applied(base):
            wanted = base.forward(ids, torch.ones_like(ids))[0, -1]
    assert torch.allclose(found, wanted, atol=1e-5)
    with pytest.raises(BankError, match="Only virtual tokens"):
        export_prompt_embeds(customized("lora"), tmp_path / "other")
