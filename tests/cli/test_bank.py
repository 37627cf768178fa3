"""The bank's commands: verify, export, import, merge."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
import torch
from transformers import AutoModelForCausalLM

if TYPE_CHECKING:
    from tests.cli.conftest import Ended, Place

Cli = Callable[..., "Ended"]


def test_verify_says_what_it_checked(cli: Cli, place: Place, trained: dict[str, Ended]) -> None:
    for name in trained:
        found = cli("bank", "verify", place.bank / name, "--json").json
        assert found["verified"] is True
    refused = cli("bank", "verify", place.bank / "lora", "--base", place.other)
    assert refused.code == 2
    assert "another weights" in refused.err


def test_lora_goes_to_peft_and_back(cli: Cli, place: Place, trained: dict[str, Ended]) -> None:
    assert cli("bank", "export", place.bank / "lora", "--to", "peft", "--out", "peft").code == 0
    back = cli("bank", "import", "peft", "--base", place.base, "--out", "bank/again", "--json").json
    assert back["method"] == "lora"
    first = cli("generate", place.bank / "lora", "the sun of day 3 topic:", "--json").json["text"]
    assert cli("generate", "bank/again", "the sun of day 3 topic:", "--json").json["text"] == first
    assert cli("bank", "verify", "bank/again", "--json").json["verified"] is True


@pytest.mark.parametrize("style", ["plain", "chat", None])
def test_import_takes_a_template_and_says_which(
    style: str | None, cli: Cli, place: Place, trained: dict[str, Ended]
) -> None:
    assert cli("bank", "export", place.bank / "lora", "--to", "peft", "--out", "peft").code == 0
    more = ["--style", style, "--template", "{text} topic: {label}"] if style else []
    ended = cli("bank", "import", "peft", "--base", place.base, "--out", "bank/again", *more, "--json")
    record = cli("bank", "show", "bank/again", "--json").json["template"]
    expected, pattern = style or "chat", more[3] if more else None
    assert (record["style"], record["pattern"]) == (expected, pattern)
    found = ended.json
    assert (found["style"], found["style_by_default"], found["template"]) == (expected, style is None, pattern)
    assert f"The style is {expected}" in ended.err
    assert ("by default" in ended.err) == (style is None)
    refused = cli("bank", "import", "peft", "--base", place.base, "--out", "bank/other", "--style", "plian")
    assert refused.code == 2 and "Did you mean plain" in refused.err


def test_export_to_transformers_merges(cli: Cli, place: Place, trained: dict[str, Ended]) -> None:
    found = cli("bank", "export", place.bank / "lora", "--to", "transformers", "--out", "merged", "--json").json
    assert found["max_logit_error"] < 1.0
    assert AutoModelForCausalLM.from_pretrained("merged").dtype in (torch.float32, torch.bfloat16)
    assert cli("bank", "export", place.bank / "full", "--to", "transformers", "--out", "whole").code == 0
    AutoModelForCausalLM.from_pretrained("whole")
    refused = cli("bank", "export", place.bank / "zero-shot", "--to", "transformers", "--out", "none")
    assert refused.code == 2


def test_export_refuses_what_it_must(cli: Cli, place: Place, trained: dict[str, Ended]) -> None:
    assert "Did you mean peft" in cli("bank", "export", place.bank / "lora", "--to", "pfet", "--out", "x").err
    refused = cli("bank", "export", place.bank / "full", "--to", "peft", "--out", "x")
    assert refused.code == 2
    assert "PEFT's format" in refused.err


def test_two_loras_become_one(cli: Cli, place: Place, trained: dict[str, Ended]) -> None:
    both = (place.bank / "lora", place.bank / "lora")
    found = cli("bank", "merge", *both, "--weights", "0.25,0.75", "--out", "bank/both", "--json").json
    assert found["relative_error"] < 1e-6
    prompt = "the rain of day 4 topic:"
    few = ("--max-new-tokens", 8, "--json")  # rounding parts the two sooner or later
    same = [cli("generate", entry, prompt, *few).json["text"] for entry in (both[0], "bank/both")]
    assert same[0] == same[1]
    assert "2 entries" in cli("bank", "merge", *both, "--weights", "1", "--out", "bank/no").err
    wrong = cli("bank", "merge", *both, "--weights", "a,b", "--out", "bank/no")
    assert wrong.code == 2 and "--weights: Input should be a valid number" in wrong.err
    assert cli("bank", "merge", place.bank / "zero-shot", "--out", "bank/no").code == 2
