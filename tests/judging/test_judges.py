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
from tunescope.data.rows import Row
from tunescope.errors import BankError, DataError, TunescopeError, UnknownNameError
from tunescope.judging import load_judge
from tunescope.judging.functions import Function
from tunescope.judging.judges import Sum, check_answers, scores_by_part

ASKED = Row(({"role": "user", "content": "say"},), "yes", 7)
MODULE = """
def words(prompt, completion):
    return len(prompt.split()) + len(completion.split())

def turns(prompt, completion):
    return len(prompt)

def many(prompts, completions, **others):
    return [len(prompt) + len(text) for prompt, text in zip(prompts, completions)]

def known(answers, completions, prompts):
    return [float(answer == text) for answer, text in zip(answers, completions)]

def styled(prompt, completion, style):
    return 1

def incomplete(prompts):
    return []

constant = 1
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_judges.py").write_text(MODULE)
    (tmp_path / "broken_judges.py").write_text("1 / 0")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*__import__("sys").path])


def test_sentiment_knows_good_from_bad() -> None:
    texts = ["A happy, wonderful day.", "A horrible death.", ""]
    good, bad, none = load_judge("sentiment", tiny_base())([ASKED] * 3, texts)
    assert 1 >= good > none == 0 > bad >= -1


def test_a_function_of_the_current_folder(module: None) -> None:
    assert load_judge("my_judges:words", tiny_base())([ASKED] * 2, ["one", "one two"]) == [2.0, 3.0]
    twice = Row(ASKED.messages * 2, None, 1)
    assert load_judge("my_judges:turns", tiny_base())([twice], ["x"]) == [2.0]


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
        ("my_judges:styled", "missing a required argument: 'style'"),
        ("my_judges:incomplete", "cannot be called: got an unexpected keyword argument 'completions'"),
        ("my_judges:nothing", "cannot be imported: AttributeError"),
        ("no_such_module:f", "cannot be imported: ModuleNotFoundError"),
        ("broken_judges:f", "cannot be imported: ZeroDivisionError"),
    ],
)
def test_functions_that_are_none(module: None, name: str, message: str) -> None:
    with pytest.raises(TunescopeError, match=message):
        load_judge(name, tiny_base())


@pytest.mark.parametrize(
    "name", ["sentimental", "bank/none", ":f", "m:", "length:40", "regexp:^a", "two*sentiment", ""]
)
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

    def judge(completions: list[str], prompts: list[str]) -> list[Any]:
        return [given[text] for text in completions]

    texts = [*given, "missing"]
    found = Function("m:f", lambda prompt, completion: given[completion])([ASKED] * 7, texts)
    assert found == Function("m:f", judge)([ASKED] * 7, texts)  # the call with all of them raises
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
    prompts, texts = ["word 3", "word 4", "word 3"], ["yes", "no", "a longer one"]
    rows = [Row(({"role": "user", "content": prompt},), None, 1) for prompt in prompts]
    alone = [ts.reward_scores(made.customized, [p], [text])[0] for p, text in zip(prompts, texts, strict=True)]
    assert judge(rows, texts) == pytest.approx(alone, abs=1e-5)
    found = judge([*rows, rows[0]], [*texts, "far " * 600])
    assert found[:3] == pytest.approx(alone, abs=1e-5) and found[3] == (
        "it leaves no room for its prompt in the reward model's tokens"
    )
    ts.train(base, ts.LoRA(), ts.DPO(), PAIRS, settings=settings, out=tmp_path / "bank/dpo")
    with pytest.raises(BankError, match="gives no rewards"):
        load_judge(str(tmp_path / "bank/dpo"), base)
    with pytest.raises(BankError, match="was made for"):
        load_judge(str(tmp_path / "bank/judge"), tiny_base("qwen2"))


def asked(*answers: str | None) -> list[Row]:
    """Rows with these answers, from line 2 on."""
    return [Row(({"role": "user", "content": f"say {i}"},), each, i) for i, each in enumerate(answers, start=2)]


@pytest.mark.parametrize(
    ("name", "scores"),
    [
        ("exact", [1.0, 1.0, 0.0, 0.0]),
        (r"regex:\bno\b", [0.0, 0.0, 1.0, 0.0]),
        ("regex:(?i)^YES", [1.0, 0.0, 0.0, 0.0]),
        ("words:2", [-0.5, -0.5, 0.0, -1.0]),
    ],
)
def test_rules(name: str, scores: list[float]) -> None:
    rows = asked("yes", "yes", "yes", "yes")
    assert load_judge(name, tiny_base())(rows, ["yes", " yes\n", "oh, no", ""]) == scores


def test_tokens_are_the_base_s() -> None:
    base, text = tiny_base(), "a tale of a king"
    own = len(base.tokenizer(text, add_special_tokens=False)["input_ids"])
    for target in (1, own, 100):
        found = load_judge(f"tokens:{target}", base)(asked(None), [text])
        assert found == [pytest.approx(-abs(own - target) / target)]
    assert own != len(text.split())


def test_a_pattern_that_runs_away_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunescope.judging.rules._SECONDS", 0.05)
    judge = load_judge("regex:(?:a|aa|aaa)+b", tiny_base())
    assert judge(asked(None, None), ["aab", "a" * 80]) == [1.0, "the pattern was searched for 0.05 s without an end"]


def test_a_weighted_sum() -> None:
    judge = load_judge([" 0.5*words:4", "-2 * regex:a*b", "exact"], tiny_base())
    assert judge.name == "0.5*words:4 + -2 * regex:a*b + exact" and judge.needs_answers
    rows, texts = asked("b b", "no", "no"), ["b b", "no", "one two three four"]
    assert judge(rows, texts) == [0.5 * -0.5 - 2 + 1, 0.5 * -0.75 + 1, 0.0]
    assert scores_by_part(judge, rows, texts) == {
        "reward": judge(rows, texts),
        "reward/words:4": [-0.5, -0.75, 0.0],
        "reward/regex:a*b": [1.0, 0.0, 0.0],
        "reward/exact": [1.0, 1.0, 0.0],
    }
    alone = load_judge("words:4", tiny_base())
    assert scores_by_part(alone, rows, texts) == {"reward": alone(rows, texts)}


def test_a_part_that_fails_is_named() -> None:
    fails = Function("m:f", lambda prompt, completion: 1 / len(completion))
    judge = Sum("sum", [(1.0, load_judge("words:4", tiny_base())), (1e308, fails)])
    found = judge(asked(None, None, None), ["", "a", "a b c d"])
    assert found[0] == "m:f: the judge raised ZeroDivisionError: division by zero" and found[1:] == [
        1e308 - 0.75,
        pytest.approx(1e308 / 7),
    ]
    assert Sum("sum", [(1e308, fails), (1e308, load_judge("regex:a", tiny_base()))])(asked(None), ["a"]) == [
        "the sum is inf"
    ]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ([], "No judge is named"),
        ("regex:", "has no pattern"),
        ("regex:(a", r"The judge regex:\(a: its pattern does not compile: missing \)"),
        ("words:0", "'0' is no length"),
        ("words:-3", "'-3' is no length"),
        ("tokens:few", "Write tokens:40 for texts of 40 tokens"),
        ("nan*sentiment", "nan is no weight"),
        ("inf * sentiment", "inf is no weight"),
        ("0*sentiment", "0 is no weight"),
        (["2*exact", "exact"], "The judge exact is named twice"),
        (["exact", "sentimental"], "Unknown judge"),
    ],
)
def test_judges_that_are_none(names: Any, words: str) -> None:
    with pytest.raises(TunescopeError, match=words):
        load_judge(names, tiny_base())


def test_a_function_may_take_all_at_once(module: None) -> None:
    rows, texts = asked("a", "b"), ["a", "aaa"]
    judge = load_judge("my_judges:many", tiny_base())
    assert judge(rows, texts) == [6.0, 8.0] and not judge.needs_answers
    judge = load_judge("my_judges:known", tiny_base())
    assert judge(rows, texts) == [1.0, 0.0] and judge.needs_answers
    one = Function("m:f", lambda prompt, completion, answer: answer == completion)
    assert one(rows, texts) == [1.0, 0.0] and one.needs_answers


def test_a_call_with_all_is_one_call() -> None:
    calls: list[int] = []

    def judge(prompts: list[str], completions: list[str]) -> torch.Tensor:
        calls.append(len(completions))
        return torch.arange(len(completions)) / 2

    assert Function("m:f", judge)(asked(None, None, None), ["a", "b", "c"]) == [0.0, 0.5, 1.0]
    assert calls == [3]


def test_lists_that_do_not_fit() -> None:
    """Where single completions are at fault they are named, and else all of them."""

    def drops(prompts: list[str], completions: list[str]) -> list[int]:
        return [len(text) for text in completions if text]

    def mean(prompts: list[str], completions: list[str]) -> list[float]:
        return [1.0]

    def number(prompts: list[str], completions: list[str]) -> float:
        return 1.0

    rows, texts = asked(None, None), ["ab", ""]
    assert Function("m:f", drops)(rows, texts) == [2.0, "the judge was given 1 completion and returned 0 numbers"]
    assert Function("m:f", mean)(rows, texts) == ["the judge was given 2 completions and returned 1 number"] * 2
    assert Function("m:f", number)(rows, texts) == ["the judge returned float, expected a list of numbers"] * 2


def test_rows_without_the_answer_that_is_needed() -> None:
    rows = asked("a", None, "", "b")
    check_answers(load_judge("words:3", tiny_base()), rows)
    with pytest.raises(DataError, match=r"The judge exact .* 2 rows have none \(lines 3, 4\)"):
        check_answers(load_judge("exact", tiny_base()), rows)
