"""Every command that loads a base has --device, and a device that is not there is one clear message."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.cli.conftest import PATTERN, Ended, Place, jsonl

from tunescope.commands import names, request

# Of the commands with --base: their tokens are counted without its weights.
WITHOUT_WEIGHTS = {"look", "mix"}


def test_every_command_that_loads_a_base_has_the_option() -> None:
    fields = {name: set(request(name).model_fields) for name in names()}
    loading = {name for name, found in fields.items() if found & {"base", "dtype"}} | {"bank merge"}
    assert {"train", "eval", "bank import"} < loading
    assert {name for name in loading if "device" not in fields[name]} == WITHOUT_WEIGHTS


COMMANDS: dict[str, Callable[[Place], list[object]]] = {
    "train": lambda p: ["train", "lora", "--base", p.base, "--data", p.data, "--template", PATTERN, "--max-steps", 1,
                        "--out", "bank/x"],
    "eval": lambda p: ["eval", "entries/lora", "--data", p.data, "--probe", p.probe, "--max-rows", 4,
                       "--generate-rows", 1],
    "eval base": lambda p: ["eval", "--base", p.base, "--data", p.data, "--template", PATTERN, "--probe", p.probe,
                            "--max-rows", 4, "--generate-rows", 1],
    "eval judge": lambda p: ["eval", "entries/lora", "--data", p.data, "--max-rows", 2, "--judge", "sentiment",
                             "--n", 1, "--max-new-tokens", 2],
    "compare": lambda p: ["compare", "--base", p.base, "--data", p.data, "--template", PATTERN, "--out", "run",
                          "--methods", "zero-shot", "--probe", p.probe, "--test-rows", 4, "--generate-rows", 1],
    "predict": lambda p: ["predict", "entries/lora", "--data", p.data, "--out", "answers.csv"],
    "generate": lambda p: ["generate", "entries/lora", "Hello", "--max-new-tokens", 2],
    "generate base": lambda p: ["generate", "--base", p.base, "Hello", "--max-new-tokens", 2],
    "generate batch": lambda p: ["generate", "--base", p.base, "--batch", "prompts.jsonl", "--max-new-tokens", 2],
    "pairs": lambda p: ["pairs", "--base", p.base, "--prompts", "prompts.jsonl", "--judge", "sentiment", "--n", 2,
                        "--max-new-tokens", 2, "--out", "pairs.jsonl"],
    "verify": lambda p: ["bank", "verify", "entries/lora"],
    "export": lambda p: ["bank", "export", "entries/lora", "--to", "peft", "--out", "exported"],
    "import": lambda p: ["bank", "import", p.folder / "peft", "--base", p.base, "--out", "bank/imported"],
    "merge": lambda p: ["bank", "merge", "entries/lora", "entries/lora", "--out", "bank/merged"],
}  # fmt: skip


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.usefixtures("trained")
def test_the_device_is_the_one_that_was_asked(
    name: str, cli: Callable[..., Ended], place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tunescope.base.loading as loading

    jsonl(Path("prompts.jsonl"), [{"prompt": "A day"}, {"prompt": "A night"}])
    shutil.copytree(place.bank, "entries")  # some of the commands write into an entry's record
    if name == "import" and not (place.folder / "peft").exists():
        cli("bank", "export", "entries/lora", "--to", "peft", "--out", place.folder / "peft")
    refused = cli(*COMMANDS[name](place), "--device", "cuda:77")
    assert refused.code == 2
    assert "Error: This machine has no device 'cuda:77' that can be used. Give one of: " in refused.err
    assert "Traceback" not in refused.err
    shutil.rmtree("run", ignore_errors=True)
    asked = []
    resolve = loading.resolve_device
    monkeypatch.setattr(loading, "resolve_device", lambda device: asked.append(device) or resolve(device))
    done = cli(*COMMANDS[name](place), "--device", "cpu")
    assert done.code in (0, 2) and asked[0] == "cpu" and str(None) not in map(str, asked), done.err
