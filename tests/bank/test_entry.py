"""Customizations at rest: what is saved comes back, what does not fit is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.tiny import tiny_base, tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM

from tunescope import bank, storage
from tunescope.bank.verify import verify
from tunescope.base import Base, load_base
from tunescope.data.rows import Row
from tunescope.errors import BankError, TunescopeError
from tunescope.inference import Item, score
from tunescope.methods import FewShot, Full, LoRA, Method, PromptTuning, System, ZeroShot
from tunescope.training import TrainSettings, train

ROWS = [Row(({"role": "user", "content": f"word {i}"},), ("yes", "no")[i % 2], i + 1) for i in range(12)]
SETTINGS = TrainSettings(max_steps=3, batch_size=4, lr=1e-2)
METHODS: list[Method] = [
    ZeroShot(),
    System(instruction="Be brief."),
    FewShot(shots=2),
    LoRA(rank=2),
    LoRA(rank=2, dora=True, rslora=True, targets=("all-linear",)),
    Full(),
]
ITEM = Item(list(range(40, 60)), [[1, 2, 3]])


@pytest.fixture
def base_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "base"
    tiny_model().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("method", METHODS, ids=lambda m: f"{m.name}{'-dora' if getattr(m, 'dora', 0) else ''}")
def test_served_equals_trained(method: Method, tmp_path: Path) -> None:
    base = tiny_base()
    trained = train(base, method, data=ROWS, settings=SETTINGS, out=tmp_path / "bank" / "a")
    loaded = bank.load(tmp_path / "bank" / "a", base)
    assert loaded.template == trained.customized.template
    assert loaded.method == method
    assert score(loaded, [ITEM]) == score(trained.customized, [ITEM])
    record = bank.read_record(tmp_path / "bank" / "a")
    assert record.labels == ("no", "yes")
    assert record.data is not None
    assert record.data.rows == 12


def test_folders_may_be_text(tmp_path: Path) -> None:
    """As a user types them in Python."""
    base, entry = tiny_base(), str(tmp_path / "bank" / "a")
    train(base, LoRA(rank=2), data=ROWS, settings=SETTINGS, out=entry)
    assert [str(path) for path in bank.list_entries(str(tmp_path / "bank"))] == [entry]
    assert bank.load(entry, base).method == LoRA(rank=2) and bank.read_record(entry).method == "lora"
    assert verify(entry, base).folder == Path(entry)


def test_full_opens_in_transformers(tmp_path: Path) -> None:
    trained = train(tiny_base(), Full(), data=ROWS, settings=SETTINGS, out=tmp_path / "a")
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "a")
    ids = torch.tensor([ITEM.prompt])
    assert torch.allclose(opened(ids).logits, trained.customized.base.model(ids).logits, atol=1e-6)


def test_full_is_one_file_however_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = type(tiny_base().model)
    save = kind.save_pretrained
    monkeypatch.setattr(
        kind, "save_pretrained", lambda self, at, max_shard_size="20KB": save(self, at, max_shard_size=max_shard_size)
    )
    trained = train(tiny_base(), Full(), data=ROWS, settings=SETTINGS, out=tmp_path / "a")
    assert score(bank.load(tmp_path / "a", tiny_base()), [ITEM]) == score(trained.customized, [ITEM])


def test_another_base_is_refused_and_says_what_differs(tmp_path: Path) -> None:
    train(tiny_base(), LoRA(), data=ROWS, settings=SETTINGS, out=tmp_path / "a")
    with pytest.raises(BankError, match="has another weights"):
        bank.load(tmp_path / "a", Base(tiny_model(seed=9), tiny_tokenizer()))
    with pytest.raises(BankError, match="has another chat template"):
        bank.load(tmp_path / "a", Base(tiny_model(), tiny_tokenizer(chat=False)))


def test_damage_is_found(tmp_path: Path) -> None:
    train(tiny_base(), LoRA(), data=ROWS, settings=SETTINGS, out=tmp_path / "a")
    file = tmp_path / "a" / "customization.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(BankError, match="SHA-256 differs"):
        bank.load(tmp_path / "a", tiny_base())
    file.unlink()
    with pytest.raises(BankError, match="is missing"):
        bank.load(tmp_path / "a", tiny_base())


def test_record_with_an_unknown_field_is_refused(tmp_path: Path) -> None:
    train(tiny_base(), ZeroShot(), data=ROWS, out=tmp_path / "a")
    path = tmp_path / "a" / "customization.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "surprise": 1}))
    with pytest.raises(BankError, match="surprise"):
        bank.load(tmp_path / "a", tiny_base())


def test_unknown_entry_suggests_a_near_one(tmp_path: Path) -> None:
    train(tiny_base(), ZeroShot(), data=ROWS, out=tmp_path / "spam-filter")
    with pytest.raises(BankError, match="Did you mean spam-filter"):
        bank.load(tmp_path / "spam-fliter")


def test_missing_and_unexpected_tensors_are_named() -> None:
    base = tiny_base()
    customization = train(base, LoRA(), data=ROWS, settings=SETTINGS).customized.customization
    tensors = customization.tensors()
    with pytest.raises(BankError, match=r"Missing tensors: 0\.q\.low_rank\.A"):
        customization.load_tensors({k: v for k, v in tensors.items() if k != "0.q.low_rank.A"})
    with pytest.raises(BankError, match="Unexpected tensors: extra"):
        customization.load_tensors({**tensors, "extra": torch.zeros(1)})
    with pytest.raises(BankError, match=r"0\.q\.low_rank\.A has shape"):
        customization.load_tensors({**tensors, "0.q.low_rank.A": torch.zeros(3, 3)})


def test_base_is_found_by_the_record(base_folder: Path, tmp_path: Path) -> None:
    from tunescope.base import load_base

    base = load_base(base_folder, dtype="float32")
    trained = train(base, LoRA(), data=ROWS, settings=SETTINGS, out=tmp_path / "bank" / "a")
    again = bank.load(tmp_path / "bank" / "a", load_base(base_folder, dtype="float32"))
    assert score(again, [ITEM]) == score(trained.customized, [ITEM])
    shutil.rmtree(base_folder)
    with pytest.raises(Exception, match="base"):
        bank.load(tmp_path / "bank" / "a")


def test_fingerprint_does_not_depend_on_precision(base_folder: Path) -> None:
    from tunescope.base import load_base

    prints = [load_base(base_folder, dtype=d).fingerprint for d in ("float32", "bfloat16")]  # type: ignore[arg-type]
    assert prints[0] == prints[1]


def test_verify_passes_and_sees_other_logits(tmp_path: Path) -> None:
    trained = train(tiny_base(), LoRA(rank=2), data=ROWS, settings=SETTINGS, out=tmp_path / "a")
    assert bank.verify(tmp_path / "a", tiny_base()).max_error == 0.0
    file = tmp_path / "a" / "check.safetensors"
    kept = load_file(file)["logits"]
    assert kept.shape == (16, 64)
    save_file({"logits": kept + 0.01}, file)
    with pytest.raises(BankError, match="other outputs than when it was saved"):
        bank.verify(tmp_path / "a", tiny_base())
    file.write_bytes(b"nothing")
    with pytest.raises(BankError, match="damaged"):
        bank.verify(tmp_path / "a", tiny_base())
    assert trained.path == tmp_path / "a"


def test_the_card_of_the_entry_one_is_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(tiny_base(), ZeroShot(), data=ROWS, out=tmp_path / "a")
    monkeypatch.chdir(tmp_path / "a")
    bank.write_card(Path(), {"score": 0.5}, bank.read_record(Path()))
    assert bank.read_record(tmp_path / "a").card == {"score": 0.5}
    assert bank.verify(tmp_path / "a", tiny_base()).max_error == 0.0


def test_what_was_measured_of_a_replaced_entry_is_not_kept_with_the_new_one(tmp_path: Path) -> None:
    train(tiny_base(), LoRA(rank=2), data=ROWS, settings=SETTINGS, out=tmp_path / "a")
    measured = bank.read_record(tmp_path / "a")
    bank.write_card(tmp_path / "a", {"score": 0.5}, measured)
    bank.write_card(tmp_path / "a", {"score": 0.6}, measured)
    train(tiny_base(), LoRA(rank=3), data=ROWS, settings=SETTINGS, out=tmp_path / "a", overwrite=True)
    with pytest.raises(BankError, match="was replaced while it was measured"):
        bank.write_card(tmp_path / "a", {"score": 0.5}, measured)
    assert bank.read_record(tmp_path / "a").card is None


def test_verify_says_where_only_the_tensors_have_a_checksum(tmp_path: Path) -> None:
    """A copy of an entry may leave the hidden marker out."""
    train(tiny_base(), LoRA(rank=2), data=ROWS, settings=SETTINGS, out=tmp_path / "a")
    assert bank.verify(tmp_path / "a", tiny_base()).sealed
    (tmp_path / "a" / storage.MARKER).unlink()
    assert not bank.verify(tmp_path / "a", tiny_base()).sealed


def test_verify_covers_every_file_of_a_full_entry(tmp_path: Path) -> None:
    train(tiny_base(), Full(), data=ROWS, settings=SETTINGS, out=tmp_path / "a")
    bank.write_card(tmp_path / "a", {"score": 0.5}, bank.read_record(tmp_path / "a"))
    assert bank.verify(tmp_path / "a", tiny_base()).max_error == 0.0
    files = [path for path in (tmp_path / "a").rglob("*") if path.is_file()]
    assert {"config.json", "tokenizer.json", "model.safetensors", "customization.json"} <= {f.name for f in files}
    for file in files:
        whole = file.read_bytes()
        for damaged in (whole[: len(whole) // 2], whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:], None):
            if damaged is None and file.name == storage.MARKER:
                continue  # an entry from before there were markers looks like this
            file.write_bytes(damaged) if damaged is not None else file.unlink()
            with pytest.raises(TunescopeError, match=str(tmp_path / "a")):
                bank.verify(tmp_path / "a", tiny_base())
            file.write_bytes(whole)
    assert bank.verify(tmp_path / "a", tiny_base()).max_error == 0.0


@pytest.mark.parametrize("method", [LoRA(rank=2), Full()], ids=lambda m: m.name)
def test_a_record_without_the_checksum_of_its_tensors_is_refused(method: Method, tmp_path: Path) -> None:
    train(tiny_base(), method, data=ROWS, settings=SETTINGS, out=tmp_path / "a")
    path = tmp_path / "a" / "customization.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "tensors_sha256": None}))
    for use in (bank.load, bank.verify):
        with pytest.raises(BankError, match="has no tensors_sha256"):
            use(tmp_path / "a", tiny_base())


def test_verify_covers_every_kind_of_entry(tmp_path: Path) -> None:
    for i, method in enumerate([ZeroShot(), PromptTuning(virtual_tokens=4), Full()]):
        train(tiny_base(), method, data=ROWS, settings=SETTINGS, out=tmp_path / str(i))
        assert bank.verify(tmp_path / str(i), tiny_base()).max_error == 0.0


def test_record_of_another_format_is_refused(tmp_path: Path) -> None:
    train(tiny_base(), ZeroShot(), data=ROWS, out=tmp_path / "a")
    path = tmp_path / "a" / "customization.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 2}))
    with pytest.raises(BankError, match=r"another version of tunescope.*format"):
        bank.read_record(tmp_path / "a")


def test_a_moved_base_lies_where_its_origin_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(tiny_base(), Full(), data=ROWS, settings=SETTINGS, out=tmp_path / "a")
    asked = {}

    def recorded(name: object, **given: object) -> Base:
        asked.update(given)
        return load_base(name, dtype="float32", device="cpu") if isinstance(name, Path) else name  # type: ignore

    monkeypatch.setattr("tunescope.bank.entry.load_base", recorded)
    monkeypatch.setattr(Base, "device", property(lambda self: torch.device("cuda:1")))
    monkeypatch.setattr("tunescope.bank.entry.load_file", lambda path, device: load_file(path))
    bank.load(tmp_path / "a", tiny_base())
    assert asked == {"dtype": "float32", "device": torch.device("cuda:1")}
