"""``pairs`` and ``eval --judge``, and their bad input."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.cli.conftest import Ended, Place, jsonl

Cli = Callable[..., Ended]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    return jsonl(tmp_path / "prompts.jsonl", [{"prompt": f"say {i}"} for i in range(4)])


@pytest.fixture
def judge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "cli_judges.py").write_text("def length(prompt, completion):\n    return len(completion)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    return "cli_judges:length"


def test_from_prompts_to_dpo_to_a_judged_evaluation(cli: Cli, place: Place, prompts: Path, judge: str) -> None:
    made = cli("pairs", "--base", place.base, "--prompts", prompts, "--judge", judge, "--n", 4, "--max-new-tokens", 8,
               "--dtype", "float32", "--out", "pairs.jsonl", "--json")  # fmt: skip
    assert made.json["prompts"] == 4 and made.json["samples"] == 16 and made.json["pairs"] >= 1
    assert made.json["mean_chosen"] > made.json["mean_rejected"] and made.json["tokens_per_s"] > 0
    assert "cut at 8 tokens" in made.err and "4/4 prompts" in made.err
    lines = Path("pairs.samples.jsonl").read_text(encoding="utf-8").splitlines()
    assert set(json.loads(lines[0])) >= {"line", "sample", "prompt", "completion", "score", "finished", "tokens"}
    trained = cli("train", "lora", "--objective", "dpo", "--base", place.base, "--data", "pairs.jsonl", "--dtype",
                  "float32", "--max-steps", 3, "--out", "bank/longer", "--json")  # fmt: skip
    assert trained.json["pairs_per_s"] > 0
    ended = cli("eval", "bank/longer", "--base", place.base, "--data", prompts, "--judge", judge, "--n", 2,
                "--max-new-tokens", 8, "--json")  # fmt: skip
    assert ended.json["metric"] == f"judge {judge}" and 0 <= ended.json["win_rate"] <= 1
    assert ended.json["samples"] == 8 and {"score_low", "kl", "kl_per_token", "difference_high"} <= set(ended.json)
    record = json.loads(Path("bank/longer/customization.json").read_text(encoding="utf-8"))
    assert record["card"]["win_rate"] == ended.json["win_rate"]
    again = cli("pairs", "bank/longer", "--base", place.base, "--prompts", prompts, "--judge", judge, "--n", 6,
                "--max-new-tokens", 6, "--max-prompts", 2, "--out", "pairs.jsonl", "--overwrite")  # fmt: skip
    assert again.code == 0 and "mean_score" in again.out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--judge": "sentimental"}, "Unknown judge"),
        ({"--judge": "no_module_here:f"}, "cannot be imported"),
        ({"--judge": "regex:(a"}, "regex:(a: its pattern does not compile"),
        ({"--judge": "length:40"}, "Unknown judge"),
        ({"--judge": "0*sentiment"}, "0 is no weight"),
        ({"--judge": "exact"}, "4 rows have none (lines 1, 2, 3, 4)"),
        ({"--out": "pairs.csv"}, "ends in .jsonl"),
        ({"--out": "prompts.jsonl"}, "exists already"),
        ({"--n": 1}, "at least two completions"),
        ({"--n": 0}, "--n"),
        ({"--temperature": 0}, "--temperature"),
        ({"--prompts": "missing.jsonl"}, "There is no file missing.jsonl"),
        ({"--base": None}, "Name whose completions to sample"),
    ],
)
def test_bad_input(cli: Cli, place: Place, prompts: Path, judge: str, change: dict[str, Any], message: str) -> None:
    given = {"--base": place.base, "--prompts": prompts, "--judge": judge, "--out": "pairs.jsonl", **change}
    ended = cli("pairs", *[part for flag, value in given.items() if value is not None for part in (flag, value)])
    assert ended.code == 2 and message in " ".join(ended.err.split())
    assert "Traceback" not in ended.err and not Path("pairs.jsonl").exists()


def test_a_judge_that_fails_stops_the_work_with_the_samples_named(
    cli: Cli, place: Place, prompts: Path, judge: str, tmp_path: Path
) -> None:
    (tmp_path / "failing_judge.py").write_text("def f(prompt, completion):\n    raise ValueError('no idea')\n")
    asked = ["pairs", "--base", place.base, "--prompts", prompts, "--judge", "failing_judge:f", "--n", 2]
    ended = cli(*asked, "--max-new-tokens", 4, "--skip-unjudged", 1, "--out", "pairs.jsonl")
    assert ended.code == 2 and "sample 1: the judge raised ValueError: no idea" in ended.err
    assert "--skip-unjudged" in ended.err and not Path("pairs.jsonl").exists()


def test_a_base_is_compared_with_nothing(cli: Cli, place: Place, prompts: Path) -> None:
    ended = cli("eval", "--base", place.base, "--data", prompts, "--judge", "sentiment")
    assert ended.code == 2 and "name an entry" in ended.err


def test_several_judges_with_weights_and_known_answers(cli: Cli, place: Place, judge: str, tmp_path: Path) -> None:
    """The flag several times; a comma in a pattern parts nothing."""
    rows = jsonl(tmp_path / "known.jsonl", [{"prompt": f"say {i}", "completion": "a"} for i in range(3)])
    judges = ["--judge", f"0.5*{judge}", "--judge", "regex:[a-z]{1,3}", "--judge", "exact"]
    made = cli("pairs", "--base", place.base, "--prompts", rows, *judges, "--n", 3, "--max-new-tokens", 4,
               "--dtype", "float32", "--out", "pairs.jsonl", "--json")  # fmt: skip
    assert made.code == 0, made.err
    for line in Path("pairs.samples.jsonl").read_text(encoding="utf-8").splitlines():
        sample = json.loads(line)
        text = sample["completion"]
        parts = 0.5 * len(text) + bool(re.search("[a-z]", text)) + (text.strip() == "a")
        assert sample["score"] == pytest.approx(parts)
    cli(
        "train", "ia3", "--base", place.base, "--data", rows, "--max-steps", 1, "--out", "bank/it", "--dtype", "float32"
    )
    ended = cli("eval", "bank/it", "--base", place.base, "--data", rows, *judges, "--n", 2, "--max-new-tokens", 4,
                "--json")  # fmt: skip
    assert ended.json["metric"] == f"judge 0.5*{judge} + regex:[a-z]{{1,3}} + exact"


def test_help_says_who_may_judge(cli: Cli) -> None:
    for command in (["pairs"], ["eval"], ["train", "lora", "--objective", "ppo"]):
        said = " ".join(cli(*command, "--help").out.split())
        assert "sentiment, exact, regex:PATTERN, words:N, tokens:N, module:function, or BANK/NAME" in said
