from __future__ import annotations

import importlib
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.objectives.pairs import PAIRS
from tests.tiny import tiny_base

import tunescope as ts
from tunescope.errors import BankError, TunescopeError, UnknownNameError
from tunescope.judging import load_judge
from tunescope.judging.judges import Function

ASKED = [{"role": "user", "content": "say"}]
MODULE = """
def words(prompt, completion):
    return len(prompt.split()) + len(completion.split())

def turns(prompt, completion):
    return len(prompt)

constant = 1
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_judges.py").write_text(MODULE)
    (tmp_path / "broken_judges.py").write_text("1 / 0")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*__import__("sys").path])


def test_sentiment_knows_good_from_bad() -> None:
    good, bad, none = load_judge("sentiment", tiny_base())(ASKED, ["A happy, wonderful day.", "A horrible death.", ""])
    assert 1 >= good > none == 0 > bad >= -1


def test_a_function_of_the_current_folder(module: None) -> None:
    assert load_judge("my_judges:words", tiny_base())(ASKED, ["one", "one two"]) == [2.0, 3.0]
    assert load_judge("my_judges:turns", tiny_base())([*ASKED, *ASKED], ["x"]) == [2.0]


def test_the_current_folder_stands_for_no_installed_module(
    module: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file there that is named like a library is not what the rest of the process imports from then on."""
    (tmp_path / "colorsys.py").write_text("raise SystemExit")
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    load_judge("my_judges:words", tiny_base())
    assert sys.path[-1] == str(tmp_path)
    assert hasattr(importlib.import_module("colorsys"), "hsv_to_rgb")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my_judges:constant", "is int, expected a function"),
        ("my_judges:nothing", "cannot be imported: AttributeError"),
        ("no_such_module:f", "cannot be imported: ModuleNotFoundError"),
        ("broken_judges:f", "cannot be imported: ZeroDivisionError"),
    ],
)
def test_functions_that_are_none(module: None, name: str, message: str) -> None:
    with pytest.raises(TunescopeError, match=message):
        load_judge(name, tiny_base())


@pytest.mark.parametrize("name", ["sentimental", "bank/none", ":f", "m:"])
def test_unknown_names(name: str) -> None:
    with pytest.raises(UnknownNameError, match="judge"):
        load_judge(name, tiny_base())


def test_what_a_function_may_return() -> None:
    given: dict[str, Any] = {
        "half": 0.5,
        "tensor": torch.tensor(2.0),
        "text": "good",
        "none": None,
        "nan": math.nan,
        "infinite": math.inf,
    }
    found = Function("m:f", lambda prompt, completion: given[completion])([*ASKED], [*given, "missing"])
    assert found == [
        0.5,
        2.0,
        "the judge returned str, expected a number",
        "the judge returned NoneType, expected a number",
        "the judge returned nan",
        "the judge returned inf",
        "the judge raised KeyError: 'missing'",
    ]


def test_a_reward_model_of_a_bank(tmp_path: Path) -> None:
    base, settings = tiny_base(), ts.TrainSettings(max_steps=4, lr=0.01)
    made = ts.train(base, ts.LoRA(), ts.Reward(), PAIRS, settings=settings, out=tmp_path / "bank/judge")
    judge = load_judge(str(tmp_path / "bank/judge"), base)
    prompt, texts = "word 3", ["yes", "no"]
    asked = [{"role": "user", "content": prompt}]
    assert judge(asked, texts) == pytest.approx(ts.reward_scores(made.customized, [prompt] * 2, texts), abs=1e-5)
    ts.train(base, ts.LoRA(), ts.DPO(), PAIRS, settings=settings, out=tmp_path / "bank/dpo")
    with pytest.raises(BankError, match="gives no rewards"):
        load_judge(str(tmp_path / "bank/dpo"), base)
    with pytest.raises(BankError, match="was made for"):
        load_judge(str(tmp_path / "bank/judge"), tiny_base("qwen2"))
