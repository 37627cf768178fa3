"""``generate --url`` against a server of the same bank."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from tests.cli.conftest import Ended, Place
from tests.serving.conftest import serving

from tunescope.base import load_base
from tunescope.serving.keys import Key, Keys

pytestmark = pytest.mark.usefixtures("trained")


@pytest.fixture
def url(place: Place) -> Any:
    with serving(place.bank, base=load_base(str(place.base), dtype="float32")) as server:
        yield server.url


def test_a_server_answers_as_the_entry_does(url: str, place: Place, cli: Callable[..., Ended]) -> None:
    flags = ("--max-new-tokens", 6, "--dtype", "float32")
    here = cli("generate", place.bank / "lora", "the sun topic:", *flags, "--json").json  # its pattern, filled
    there = cli("generate", "--url", url, "--model", "lora", "the sun", "--max-new-tokens", 6, "--json").json
    assert there["text"] == here["text"] and there["customization"] == "lora"
    streamed = cli("generate", "--url", f"{url}/v1/", "--model", "lora", "the sun", "--max-new-tokens", 6)
    assert streamed.code == 0 and streamed.out.rstrip("\n") == here["text"].rstrip("\n")
    several = cli("generate", "--url", url, "a", "b", "--max-new-tokens", 3, "--temperature", 1, "--n", 2, "--json")
    assert [len(json.loads(line)["samples"]) for line in several.out.splitlines()] == [2, 2]
    chosen = cli("generate", "--url", url, "--choice", "wet", "--choice", "warm", "the sun", "--json").json
    assert chosen["text"] in ("wet", "warm")


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("--model", "lorra", "x"), "Did you mean lora"),
        (("--base", "b", "x"), "--base is for this machine"),
        ((), "at least one prompt"),
        (("x", "--logprobs"), "--logprobs is not shown"),
        (("x", "--json-schema", "{"), "no JSON"),
        (("x", "--steer", "quality=4"), "not trained on attributes"),
    ],
)
def test_what_cannot_be_asked_of_a_server(url: str, cli: Callable[..., Ended], arguments: Any, why: str) -> None:
    ended = cli("generate", "--url", url, *arguments)
    assert ended.code == 2 and why in ended.err.replace("\n", " ")


def test_no_server_and_no_key(place: Place, cli: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch) -> None:
    assert "is a server there" in cli("generate", "--url", "http://127.0.0.1:9", "x").err.replace("\n", " ")
    assert "--url" in cli("generate", "--model", "x", "y").err
    keys = Keys([Key(name="me", key="sixteen characters")])
    with serving(place.bank, base=load_base(str(place.base), dtype="float32"), keys=keys) as server:
        assert "TUNESCOPE_API_KEY" in cli("generate", "--url", server.url, "x").err
        monkeypatch.setenv("TUNESCOPE_API_KEY", "sixteen characters")
        assert cli("generate", "--url", server.url, "x", "--max-new-tokens", 2).code == 0
