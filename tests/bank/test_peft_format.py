"""What PEFT folders may not contain, and what cannot become one. The numbers are compared in tests/oracles."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.tiny import tiny_base

from tunescope.bank.peft_format import CONFIG, TENSORS, export_peft, import_peft
from tunescope.data.template import default_template
from tunescope.errors import BankError, UnknownNameError
from tunescope.methods import Adapter, LoRA, Method, PromptTuning, compose, customize


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    base = tiny_base("llama")
    return export_peft(customize(base, LoRA(rank=2), default_template(base.tokenizer)), tmp_path / "adapter")


def _change_config(folder: Path, **values: object) -> None:
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**config, **values}))


def _change_tensors(folder: Path, changes: dict[str, torch.Tensor | None]) -> None:
    tensors = {**load_file(folder / TENSORS), **changes}
    save_file({key: tensor for key, tensor in tensors.items() if tensor is not None}, folder / TENSORS)


FIRST = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


def test_what_is_written_is_plain(folder: Path) -> None:
    config = json.loads((folder / CONFIG).read_text())
    assert config["target_modules"] == ["q_proj", "v_proj"]
    assert (config["r"], config["lora_alpha"], config["rank_pattern"]) == (2, 16, {})
    assert config["base_model_name_or_path"] == "tiny-llama"


def test_missing_and_unexpected_tensors_are_named(folder: Path) -> None:
    _change_tensors(folder, {FIRST: None})
    with pytest.raises(BankError, match=f"Missing tensors: {FIRST}"):
        import_peft(folder, tiny_base("llama"))


def test_unexpected_tensors_are_named(folder: Path) -> None:
    name = FIRST.replace("q_proj", "k_proj")
    _change_tensors(folder, {name: torch.zeros(2, 32)})
    with pytest.raises(BankError, match=f"Unexpected tensors: {name}"):
        import_peft(folder, tiny_base("llama"))


def test_wrong_shapes_are_named(folder: Path) -> None:
    _change_tensors(folder, {FIRST: torch.zeros(2, 33)})
    with pytest.raises(BankError, match=r"q_proj\.lora_A has shape \(2, 33\), but this base needs \(2, 32\)"):
        import_peft(folder, tiny_base("llama"))


def test_another_architecture_is_refused(folder: Path) -> None:
    with pytest.raises(BankError, match="Unexpected tensors"):
        import_peft(folder, tiny_base("gpt2"))


def test_targets_that_match_nothing_are_refused(folder: Path) -> None:
    _change_config(folder, target_modules=["nowhere"])
    save_file({}, folder / TENSORS)
    with pytest.raises(BankError, match="match nothing"):
        import_peft(folder, tiny_base("llama"))


def test_a_pickle_is_refused_unread(folder: Path) -> None:
    (folder / TENSORS).unlink()
    (folder / "adapter_model.bin").write_bytes(b"\x80\x04cos\nsystem\n")
    with pytest.raises(BankError, match="pickle"):
        import_peft(folder, tiny_base("llama"))


def test_damaged_files_are_named(folder: Path) -> None:
    (folder / TENSORS).write_bytes(b"nothing")
    with pytest.raises(BankError, match="damaged"):
        import_peft(folder, tiny_base("llama"))
    (folder / CONFIG).write_text("[]")
    with pytest.raises(BankError, match="damaged"):
        import_peft(folder, tiny_base("llama"))
    (folder / CONFIG).unlink()
    with pytest.raises(BankError, match="no adapter_config"):
        import_peft(folder, tiny_base("llama"))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"peft_type": "VERA"}, "peft_type VERA"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "all"}, "bias=all"),
        ({"init_lora_weights": "pissa_niter_4"}, "changes the base's weights"),
        ({"target_modules": ["lm_head"]}, "Missing tensors"),
    ],
)
def test_what_has_no_equivalent_is_refused(folder: Path, values: dict[str, object], said: str) -> None:
    _change_config(folder, **values)
    with pytest.raises(BankError, match=said):
        import_peft(folder, tiny_base("llama"))


@pytest.mark.parametrize("method", [Adapter(), compose(PromptTuning(), LoRA())])
def test_what_peft_has_no_place_for_is_refused(method: Method, tmp_path: Path) -> None:
    base = tiny_base("llama")
    with pytest.raises(BankError, match="cannot be written in PEFT's format"):
        export_peft(customize(base, method, default_template(base.tokenizer)), tmp_path / "adapter")


def test_a_prompt_of_another_width_is_refused(tmp_path: Path) -> None:
    base = tiny_base("llama")
    export_peft(customize(base, PromptTuning(virtual_tokens=3), default_template(base.tokenizer)), tmp_path / "adapter")
    save_file({"prompt_embeddings": torch.zeros(3, 7)}, tmp_path / "adapter" / TENSORS)
    with pytest.raises(BankError, match=r"shape \(3, 7\)"):
        import_peft(tmp_path / "adapter", base)


def test_import_onto_experts_is_refused(folder: Path) -> None:
    _change_config(folder, target_modules="all-linear")
    with pytest.raises((BankError, UnknownNameError)):
        import_peft(folder, tiny_base("mixtral"))
