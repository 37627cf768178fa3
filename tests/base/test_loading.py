"""Folders that strangers made: loaded exactly, or refused with words and a remedy; nothing of theirs is run."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tests.tiny import SPECIAL, tiny_base, tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from tunescope.base import Base, load_base
from tunescope.base.loading import load_tokenizer
from tunescope.data.encoding import Encoder
from tunescope.data.rows import Row
from tunescope.data.template import default_template
from tunescope.errors import BaseModelError, DataError


def _saved(folder: Path, arch: str = "llama") -> Path:
    tiny_model(arch).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(tmp_path: Path, empty_cache: Path) -> Path:
    return _saved(tmp_path / "mine")


def _change(file: Path, **values: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


@pytest.mark.parametrize("arch", ["falcon", "bloom", "stablelm"])
def test_an_attention_of_its_own_is_kept_and_said(
    arch: str, tmp_path: Path, empty_cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "tunescope"):
        base = load_base(_saved(tmp_path / arch, arch), dtype="float32", device="cpu")
    kind = "eager" if arch == "bloom" else "sdpa"
    assert f"{tmp_path / arch} has an attention of its own, so transformers' ({kind}) is used." in caplog.messages
    ids = torch.arange(8)[None]
    with torch.no_grad():
        torch.testing.assert_close(
            base.forward(ids, torch.ones_like(ids)), tiny_base(arch).forward(ids, torch.ones_like(ids))
        )


def test_an_attention_that_the_configuration_names_is_not_fetched(folder: Path) -> None:
    for name in ("attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation"):
        _change(folder / "config.json", **{name: "somebody/kernel"})
    assert load_base(folder).model.config._attn_implementation == "tunescope_grouped"


@pytest.mark.parametrize("load", [load_base, load_tokenizer])
@pytest.mark.parametrize("part", ["config.json", "tokenizer_config.json"])
def test_code_that_comes_with_a_model_is_never_run(
    part: str, load: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = tmp_path / "ran"
    (folder / "own.py").write_text(f"import pathlib\npathlib.Path({str(ran)!r}).touch()\nclass C: pass\n")
    if part == "config.json":
        classes: Any = {"AutoConfig": "own.C", "AutoModelForCausalLM": "own.C"}
        _change(folder / part, model_type="own", architectures=["C"], auto_map=classes)
    else:
        _change(folder / part, tokenizer_class="C", auto_map={"AutoTokenizer": ["own.C", "own.C"]})
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 100))
    with pytest.raises(BaseModelError, match=r"needs code that came with the model, and such code is never run"):
        load(folder)
    assert not ran.exists()
    assert not any(name.startswith("transformers_modules") for name in sys.modules)


@pytest.mark.parametrize("load", [load_base, load_tokenizer])
def test_more_tokens_than_embeddings_are_refused(load: Any, folder: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<tool>", "</tool>"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(BaseModelError, match=r"262 tokens and the embedding 260 rows.*</tool>, <tool>.*resize"):
        load(folder)
    with pytest.raises(BaseModelError, match="resize_token_embeddings"):
        Base(tiny_model(), tokenizer)
    larger = tiny_model()
    larger.resize_token_embeddings(262)
    assert Base(larger, tokenizer).embedding.num_embeddings == 262


def test_a_picture_s_token_without_an_embedding_is_none_of_a_text_s() -> None:
    """google/gemma-3-1b has one."""
    made = tiny_tokenizer()
    made.add_tokens(["<image>"], special_tokens=True)
    for named, known in (({"image_token": "<image>"}, True), ({"other_token": "<image>"}, False)):
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=made.backend_tokenizer, extra_special_tokens=named)
        with contextlib.nullcontext() if known else pytest.raises(BaseModelError, match="261 tokens"):
            assert Base(tiny_model(), tokenizer).embedding.num_embeddings == 260
    pictured = PreTrainedTokenizerFast(
        tokenizer_object=made.backend_tokenizer, extra_special_tokens={"image_token": "<image>"}, eos_token=SPECIAL[0]
    )
    encoder = Encoder(pictured, default_template(pictured), 512)
    with pytest.raises(DataError, match="holds <image>, which stands for a picture"):
        encoder.prompt([{"role": "user", "content": "see <image> here"}])
    row = Row(({"role": "user", "content": "see"},), "an <image>", 4)
    with pytest.raises(DataError, match="line 4"):
        encoder.encode_all([row])


def test_pickles_are_never_read(folder: Path) -> None:
    """Also where a file beside them ends as weights should."""
    weights = folder / "model.safetensors"
    torch.save(load_file(weights), folder / "pytorch_model.bin")
    weights.rename(folder / "other.safetensors")
    with pytest.raises(BaseModelError, match=r"model\.safetensors"):
        load_base(folder)
    (folder / "other.safetensors").unlink()
    with pytest.raises(BaseModelError, match="pickles, which can run code and are never loaded"):
        load_base(folder)


def test_nobody_is_told_to_delete_what_is_theirs(folder: Path, empty_cache: Path) -> None:
    """What the cache holds is ours to make again."""
    tensors = load_file(folder / "model.safetensors")
    save_file({name: tensor[..., :1].contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    with pytest.raises(BaseModelError, match=r"is \(260, 1\), and its config\.json asks for \(260, 32\)") as said:
        load_base(folder)
    assert "delete that" not in str(said.value)
    assert "copy them again from where they came" in str(said.value)
    ours = empty_cache / "bases" / "x"
    ours.parent.mkdir(parents=True)
    folder.rename(ours)
    with pytest.raises(BaseModelError, match=r"delete that folder and run: tunescope pull"):
        load_base(ours)


def _deep(depth: int) -> str:
    return '{"a":' * depth + "0" + "}" * depth


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json", "generation_config.json"])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (_deep(150), "nests deeper than 100 levels"),
        (_deep(200_000), "nests deeper than 100 levels"),
        ("[]", "does not hold a JSON object"),
        ('{"a": ' + "9" * 5000 + "}", "is not valid JSON"),
        (b"\xff\xfe", "is not valid JSON"),
    ],
)
def test_settings_beyond_bounds_are_named(file: str, content: Any, said: str, folder: Path) -> None:
    (folder / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(BaseModelError, match=rf"{file} {said}"):
        load_base(folder)


@pytest.mark.parametrize(
    "values",
    [
        {"num_hidden_layers": 10**9},
        {"num_hidden_layers": 3},
        {"num_hidden_layers": -1},
        {"num_hidden_layers": "2"},
        {"num_hidden_layers": None},
        {"hidden_size": 10**15},
        {"hidden_size": 0},
        {"vocab_size": 10**18},
        {"vocab_size": -5},
        {"num_attention_heads": 0},
        {"num_key_value_heads": 3},
        {"max_position_embeddings": "many"},
        {"model_type": ["llama"]},
        {"model_type": "nothing"},
        {"architectures": 5},
        {"rope_parameters": [1]},
        {"rms_norm_eps": {}},
        {"eos_token_id": "x"},
        {"quantization_config": 3},
        {"quantization_config": {"quant_method": "nothing"}},
        {"torch_dtype": "complex"},
        {"dtype": 7},
    ],
)
def test_odd_configurations_are_refused_or_loaded(values: dict[str, Any], folder: Path) -> None:
    _change(folder / "config.json", **values)
    try:
        load_base(folder)
    except BaseModelError as error:
        assert str(folder) in str(error)


def test_weights_that_are_missing_are_not_drawn_at_random(folder: Path) -> None:
    _change(folder / "config.json", num_hidden_layers=3, layer_types=None)
    with pytest.raises(
        BaseModelError, match=r"weights lack model\.layers\.2\S+ and 8 more tensors of its config\.json"
    ):
        load_base(folder)


def test_an_index_names_files_beside_it_only(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").rename(tmp_path / "elsewhere.safetensors")
    index = folder / "model.safetensors.index.json"
    for name, said in (("../elsewhere.safetensors", "no file beside it"), ([1], "no weight_map of file names")):
        index.write_text(json.dumps({"weight_map": {"a": name}}))
        with pytest.raises(BaseModelError, match=said):
            load_base(folder)


def test_positions_that_nobody_can_give_are_refused() -> None:
    config = transformers.MptConfig(d_model=16, n_layers=1, n_heads=2, vocab_size=260)
    base = Base(AutoModelForCausalLM.from_config(config), tiny_tokenizer())
    branch = torch.zeros(1, 4, dtype=torch.long)
    with pytest.raises(BaseModelError, match="'mpt' model counts positions itself"):
        base.masks(branch, torch.arange(4)[None])
