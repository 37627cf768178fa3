"""``eval --data lm-eval:TASK``."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.cli.conftest import Ended, Place

pytest.importorskip("lm_eval", reason="needs the extra lm-eval")
from tests.evaluation.test_harness import task

from tunescope import bank

Cli = Callable[..., Ended]


def test_an_entry_is_measured_and_its_record_says_so(trained: Any, place: Place, cli: Cli, tmp_path: Path) -> None:
    evens = f"lm-eval:{task(tmp_path)}"
    found = cli("eval", place.bank / "lora", "--data", evens, "--max-rows", 6, "--json").json
    assert found["rows"] == 6 and set(found["tasks"]["evens"]) == {"acc"}
    card = bank.read_record(place.bank / "lora").card
    assert card is not None and card["metric"] == "gain on benchmarks"
    people = cli("eval", "--base", place.base, "--data", evens, "--style", "chat")
    assert people.code == 0 and "evens" in people.out and "+0.000" in people.out


@pytest.mark.parametrize(
    ("data", "more", "said"),
    [
        ("lm-eval:", (), "Name tasks behind lm-eval:"),
        ("lm-eval:no-such-task", (), "no task 'no-such-task'"),
        ("lm-eval:x", ("--judge", "sentiment"), "has no meaning where benchmarks are measured"),
    ],
)
def test_what_is_refused(data: str, more: tuple[str, ...], said: str, place: Place, cli: Cli) -> None:
    ended = cli("eval", "--base", place.base, "--data", data, *more)
    assert ended.code == 2 and said in ended.err


def test_without_the_harness_it_says_how_to_get_it(place: Place, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "lm_eval" else found(name))
    ended = cli("eval", "--base", place.base, "--data", "lm-eval:arc_easy")
    assert ended.code == 2 and "pip install 'tunescope[lm-eval]'" in ended.err
