"""What PEFT folders may not contain, and what cannot become one. The numbers are compared in tests/oracles."""

from __future__ import annotations

import copy
import functools
import json
import logging
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tests.tiny import tiny_base

from tunescope.bank.peft import config as peft_config
from tunescope.bank.peft import export_peft, import_peft
from tunescope.bank.peft.config import CONFIG, PeftConfig
from tunescope.bank.peft.files import TENSORS
from tunescope.data.template import default_template
from tunescope.errors import BankError, DataError, TunescopeError, UnknownNameError
from tunescope.methods import Adapter, Customized, LoRA, Method, PromptTuning, compose, customize


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


# What a file by hand or by an attacker may hold where PEFT has something else.
_ODD = [
    None, True, False, 0, 1, -1, 2, 2**31, 10**30, 0.5, 1e308, float("nan"), float("inf"), "", " ", "x", "8", "none",
    "all-linear", "all", "q_proj", "LORA", "IA3", "lora", "*", "(", "[a-", ".*", r"(?P<a>.)(?P=a)", "\0",
    "🙂" * 99, "a" * 20_000, [], [[]], [None], [1], ["q_proj"], ["q_proj", 3], [["q_proj"]], [True], {}, {"q_proj": 4},
    {"q_proj": "4"}, {"q_proj": 0}, {"(": 2}, {"": 2}, {"a": {"b": {}}}, {"q_proj": float("nan")}, [0], [10**30],
    ["layers"], [{}],
]  # fmt: skip


def _imported(folder: Path, text: str) -> None:
    """Import, which may be refused in words only."""
    (folder / CONFIG).write_text(text, encoding="utf-8")
    try:
        import_peft(folder, tiny_base("llama"))
    except TunescopeError as error:
        assert str(folder) in str(error)


@pytest.mark.parametrize(
    "field", [*PeftConfig.model_fields, "modules_to_save", "base_model_name_or_path", "loftq_config"]
)
def test_one_odd_value_is_refused_in_words_or_does_no_harm(field: str, folder: Path) -> None:
    config = json.loads((folder / CONFIG).read_text())
    for value in _ODD:
        _imported(folder, json.dumps({**config, field: value}))


@functools.cache
def _sound_config() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as temporary:
        return json.loads((export_peft(_lora(tiny_base("llama")), Path(temporary) / "adapter") / CONFIG).read_text())


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12) | st.sampled_from(_ODD),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(changes=st.dictionaries(st.sampled_from([*PeftConfig.model_fields]), _json, max_size=4))
def test_odd_configurations_give_no_traceback(changes: dict[str, object], folder: Path) -> None:
    _imported(folder, json.dumps({**_sound_config(), **changes}))


@pytest.mark.parametrize(
    "text",
    ["", "{", "null", "[]", '"x"', "{}", '{"peft_type": "LORA"}', '{"a":' * 100_000, '{"r": ' + "9" * 9999 + "}"],
)
def test_odd_files_give_no_traceback(text: str, folder: Path) -> None:
    with pytest.raises(BankError):
        (folder / CONFIG).write_text(text)
        import_peft(folder, tiny_base("llama"))


def _lora(base: object) -> Customized:
    return customize(copy.copy(base), LoRA(rank=2), default_template(base.tokenizer))  # type: ignore


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("target_modules", "(.*.*.*.*.*.*.*.*.*.*.*.*.*.*)*x"),
        ("exclude_modules", "(([a-z_.0-9])+)+!"),
        ("rank_pattern", {"(([a-z_.0-9])+)+!": 2}),
        ("layers_pattern", "(([a-z_.0-9])+)+!"),
    ],
)
def test_a_pattern_that_takes_for_ever_is_given_up(
    field: str, value: object, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peft_config, "_SECONDS", 1.0)
    _change_config(folder, **{field: value, "layers_to_transform": [0, 1] if field == "layers_pattern" else None})
    begin = time.monotonic()
    with pytest.raises(BankError, match=r"matching its patterns to the base's modules did not end within 1 s"):
        import_peft(folder, tiny_base("llama"))
    assert time.monotonic() - begin < 20


def test_patterns_of_all_kinds_mean_what_they_mean_to_peft(folder: Path) -> None:
    base = tiny_base("llama")
    _change_config(folder, target_modules=r"^(?!.*mlp).*\.(?:q|v)_proj$", rank_pattern={r"layers\.0\..*": 2}, r=7)
    changed = {k: torch.zeros(7, 32) for k in load_file(folder / TENSORS) if "layers.1" in k and "lora_A" in k}
    changed |= {
        k: torch.zeros(len(t), 7) for k, t in load_file(folder / TENSORS).items() if "layers.1" in k and "lora_B" in k
    }
    _change_tensors(folder, changed)
    method = import_peft(folder, base).method
    assert isinstance(method, LoRA)
    assert sorted({method.rank, *method.rank_pattern.values()}) == [2, 7]


@pytest.mark.parametrize(
    ("tensor", "said"),
    [
        (torch.full((2, 32), float("inf")), "not finite"),
        (torch.full((2, 32), float("nan")), "not finite"),
        (torch.full((2, 32), 1e300, dtype=torch.float64), "not finite"),
        (torch.ones(2, 32, dtype=torch.int8), "only floating point"),
        (torch.ones(()), "has shape"),
    ],
)
def test_values_that_no_training_gives_are_refused(tensor: torch.Tensor, said: str, folder: Path) -> None:
    _change_tensors(folder, {FIRST: tensor})
    with pytest.raises(BankError, match=said):
        import_peft(folder, tiny_base("llama"))


@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize("style", ["auto", "chat", "plain"])
def test_the_template_is_what_was_named_and_is_said(
    style: str, chat: bool, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base, pattern = tiny_base("llama", chat=chat), "{text} topic: {label}"
    if style == "chat" and not chat:
        with pytest.raises(DataError, match="no chat template"):
            import_peft(folder, base, style=style)
        return
    with caplog.at_level(logging.INFO, "tunescope"):
        found = import_peft(folder, base, pattern=pattern, style=style).template
    expected = ("chat" if chat else "plain") if style == "auto" else style
    assert (found.style, found.pattern) == (expected, pattern)
    (said,) = caplog.messages
    assert f"The style is {expected}" in said and pattern in said
    assert ("by default" in said) == (style == "auto")
    with pytest.raises(DataError, match="must name at least one input field"):
        import_peft(folder, base, pattern="nothing")
