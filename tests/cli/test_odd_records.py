"""Whatever a stranger's ``customization.json`` says, every command answers in words and none in a traceback."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.cli.conftest import Ended, Place

VALUES: list[Any] = [None, True, -1, 10**9, 10**30, 1e308, "", "\x1b[31m", "half \ud800", [], [None], [-1], {"a": 1}]
FIELDS = [
    "method", "method_settings", "method_settings.rank", "method_settings.alpha", "method_settings.targets",
    "method_settings.layers", "objective", "objective_settings", "train_settings", "dtype", "template.style",
    "template.pattern", "template.system", "template.shots", "template.nearest", "template.virtual_tokens",
    "template.virtual_splits", "template.stop", "base.name", "base.fingerprint", "base.fingerprint.quantized", "data",
    "labels", "tensors_sha256", "training", "card",
]  # fmt: skip


@pytest.fixture
def entry(place: Place, trained: dict[str, Ended], tmp_path: Path) -> Path:
    """A copy of an entry, with another of its kind beside it."""
    for name in ("a", "b"):
        shutil.copytree(place.bank / "lora", tmp_path / "bank" / name)
    return tmp_path / "bank" / "a"


def commands(entry: Path, place: Place) -> list[tuple[object, ...]]:
    return [
        ("bank", "list", entry.parent),
        ("bank", "show", entry),
        ("bank", "verify", entry),
        ("bank", "merge", entry, entry.parent / "b", "--out", "merged"),
        ("bank", "export", entry, "--to", "peft", "--out", "peft"),
        ("generate", entry, "hello", "--max-new-tokens", 2),
        ("generate", entry, "hello", "--choice", "a", "--choice", "b"),
        ("eval", entry, "--data", place.data, "--max-rows", 4, "--generate-rows", 1, "--probe", place.probe),
    ]


@pytest.mark.parametrize("field", FIELDS)
def test_a_field_of_any_value(field: str, cli: Callable[..., Ended], place: Place, entry: Path) -> None:
    path = entry / "customization.json"
    record = json.loads(path.read_text())
    *outer, last = field.split(".")
    number = FIELDS.index(field)
    for value in VALUES:
        changed = json.loads(json.dumps(record))
        at = changed
        for name in outer:
            at = at[name]
        at[last] = value
        path.write_text(json.dumps(changed))
        every = commands(entry, place)
        number += 1
        for command in (*every[:2], every[2 + number % (len(every) - 2)]):  # each value with another one
            ended = cli(*command)
            assert ended.code in (0, 2) and (ended.code == 0 or "Error: " in ended.err), ended.err
            assert not {"\x1b", "\ud800"} & set(ended.out + ended.err)
            for made in (Path("merged"), Path("peft")):
                shutil.rmtree(made, ignore_errors=True)


@pytest.mark.parametrize("content", ["", "[]", "null", "{", "[" * 5000, '{"a": ' * 500 + "1" + "}" * 500, "1" * 5000])
def test_a_record_that_is_none(content: str, cli: Callable[..., Ended], place: Place, entry: Path) -> None:
    (entry / "customization.json").write_text(content)
    listed, *others = [cli(*command) for command in commands(entry, place)]
    assert listed.code == 0 and "customization.json" in "".join(listed.err.split()) and "lora" in listed.out
    for ended in others:
        assert ended.code == 2 and "customization.json is damaged" in " ".join(ended.err.split())


def test_more_than_memory_holds_is_said_in_words(
    cli: Callable[..., Ended], place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = ("train", "lora", "--base", place.base, "--data", place.data, "--template", "{text} {label}", "--out", "a")
    ended = cli(*train, "--rank", 10**30)
    assert ended.code == 2 and "rank" in ended.err

    def full(*_: object, **__: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 128 bytes.")

    monkeypatch.setattr("tunescope.methods.lora.LowRank", full)
    ended = cli(*train, "--rank", 4)
    assert ended.code == 2 and "not enough memory" in ended.err
