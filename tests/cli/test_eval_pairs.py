"""``train --objective dpo|reward`` and ``eval`` of what they make, and their bad input."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.cli.conftest import Ended, Place, jsonl

Cli = Callable[..., Ended]
PAIRS: list[dict[str, Any]] = [
    {"prompt": f"word {i}", "chosen": "yes" + "!" * (i % 3), "rejected": "no" + "." * (i % 4)} for i in range(12)
]


@pytest.fixture
def train(cli: Cli, place: Place, tmp_path: Path) -> Callable[..., Ended]:
    """Train LoRA on pairs into ``bank/x``."""

    def run(*more: object, pairs: list[Any] = PAIRS, method: str = "lora") -> Ended:
        data = jsonl(tmp_path / "pairs.jsonl", pairs)
        return cli(
            "train", method, "--base", place.base, "--data", data, "--max-steps", 6, "--lr", 0.01, "--dtype",
            "float32", "--out", "bank/x", *more, "--json",
        )  # fmt: skip

    return run


def test_dpo_from_training_to_calibration(train: Callable[..., Ended], cli: Cli, place: Place) -> None:
    made = train("--objective", "dpo", "--beta", 0.5, "--loss", "sigmoid").json
    assert made["pairs_per_s"] > 0
    assert {"rewards/chosen", "rewards/rejected", "rewards/margin", "rewards/accuracy", "kl", "lengths/chosen"} <= set(
        made
    )
    lines = Path("bank/x/metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 6 and "rewards/margin" in json.loads(lines[0])
    record = json.loads(Path("bank/x/customization.json").read_text(encoding="utf-8"))
    assert record["objective"] == "dpo" and record["objective_settings"]["beta"] == 0.5
    ended = cli("eval", "bank/x", "--base", place.base, "--data", "pairs.jsonl", "--plot", "plot.html", "--json")
    assert ended.json["score"] > 0.5 and Path("plot.html").is_file()
    assert "rows it was trained on" in ended.err
    record = json.loads(Path("bank/x/customization.json").read_text(encoding="utf-8"))
    assert record["card"]["score"] == ended.json["score"]
    shown = cli("eval", "bank/x", "--base", place.base, "--data", "pairs.jsonl").out
    assert "preference accuracy" in shown and "calibration_error" in shown
    assert cli("bank", "verify", "bank/x", "--base", place.base).code == 0
    assert "score" in cli("eval", "bank/x", "--base", place.base, "--data", place.data, "--template",
                          "{text} topic: {label}", "--probe", place.probe, "--json").json  # fmt: skip
    Path("plot.html").write_text("thesis")
    refused = cli("eval", "bank/x", "--base", "no-base", "--data", "pairs.jsonl", "--plot", "plot.html")
    assert refused.code == 2 and "holds was not written by tunescope" in " ".join(refused.err.split())
    assert Path("plot.html").read_text() == "thesis"


def test_a_reward_model_scores_texts(train: Callable[..., Ended], cli: Cli, place: Place, tmp_path: Path) -> None:
    assert train("--objective", "reward", "--centering", 0.01).json["rewards/accuracy"] > 0.5
    rows = jsonl(tmp_path / "texts.jsonl", [{"prompt": "word 3", "completion": text} for text in ("yes", "no")])
    found = cli("eval", "bank/x", "--base", place.base, "--data", rows, "--json").json
    assert [text["completion"] for text in found["texts"]] == ["yes", "no"]
    assert found["texts"][0]["reward"] > found["texts"][1]["reward"]
    assert "line 2: no" in cli("eval", "bank/x", "--base", place.base, "--data", rows).out


def test_flags_are_those_of_the_objective(cli: Cli) -> None:
    said = cli("train", "lora", "--objective", "dpo", "--help").out
    assert all(flag in said for flag in ("--beta", "--loss", "--label-smoothing", "--nll-weight", "--length-normalize"))
    assert "--centering" in cli("train", "lora", "--objective=reward", "--help").out
    assert "--beta" not in cli("train", "lora", "--help").out


TEXT = PAIRS[0]
BAD: dict[str, tuple[tuple[object, ...], list[Any], str]] = {
    "beta": (("--objective", "dpo", "--beta", 0), PAIRS, "--beta: Input should be greater than 0"),
    "smoothing": (("--objective", "dpo", "--label-smoothing", 0.7), PAIRS, "--label-smoothing"),
    "flag of another objective": (("--beta", 0.1), PAIRS, "--beta: belongs to objective dpo, and this is sft"),
    "flag of the reward model": (
        ("--objective", "dpo", "--centering", 1),
        PAIRS,
        "--centering: belongs to objective reward, and this is dpo",
    ),
    "unknown objective": (("--objective", "dpoo"), PAIRS, "Did you mean dpo"),
    "unknown loss": (("--objective", "dpo", "--loss", "sigmoidal"), PAIRS, "--loss"),
    "gamma": (("--objective", "dpo", "--gamma", 1), PAIRS, "gamma belongs to the loss simpo"),
    "equal": (("--objective", "dpo"), [{**TEXT, "rejected": TEXT["chosen"]}], "line 1: chosen and rejected are equal"),
    "empty": (("--objective", "reward"), [{**TEXT, "chosen": ""}], "line 1: chosen is empty"),
    "column": (("--objective", "dpo"), [{"prompt": "a", "chosen": "b"}], "rejected is missing"),
    "template": (("--objective", "dpo", "--template", "{prompt} {chosen}"), PAIRS, "leave --template out"),
    "margin": (("--objective", "dpo", "--loss", "rpo"), PAIRS, "--loss rpo needs a margin"),
    "pairs for sft": ((), PAIRS, "expected prompt and completion"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name: str, train: Callable[..., Ended]) -> None:
    arguments, pairs, said = BAD[name]
    ended = train(*arguments, pairs=pairs)
    assert (ended.code, ended.out) == (2, "")
    assert said in " ".join(ended.err.split()) and "Traceback" not in ended.err
    assert not Path("bank/x").exists()


def test_methods_without_training_take_no_objective(train: Callable[..., Ended]) -> None:
    assert "zero-shot" in train("--objective", "dpo", method="zero-shot").err


def test_eval_of_what_has_no_rewards(cli: Cli, place: Place, trained: dict[str, Ended], tmp_path: Path) -> None:
    data = jsonl(tmp_path / "pairs.jsonl", PAIRS)
    ended = cli("eval", place.bank / "lora", "--base", place.base, "--data", data)
    assert ended.code == 2 and "was trained for sft, not on pairs" in ended.err
    ended = cli("eval", place.bank / "lora", "--base", place.base, "--data", place.data, "--plot", "p.html")
    assert ended.code == 2 and "--plot: has no meaning where a task is measured" in ended.err
    assert not Path("p.html").exists()


def test_options_of_another_measurement(train: Callable[..., Ended], cli: Cli, place: Place, tmp_path: Path) -> None:
    assert train("--objective", "reward").code == 0
    texts = jsonl(tmp_path / "texts.jsonl", [{"prompt": "a", "completion": "b"}] * 3)

    def refused(data: Path | str, *options: object) -> str:
        ended = cli("eval", "bank/x", "--base", place.base, "--data", data, *options)
        return ended.err if ended.code == 2 else "not refused"

    assert "--n: has no meaning where pairs are measured" in refused("pairs.jsonl", "--n", 4)
    assert "--generate-rows: has no meaning where a reward model scores texts" in refused(texts, "--generate-rows", 0)
    assert "--plot: has no meaning where completions are judged" in refused(
        texts, "--judge", "sentiment", "--plot", "p.html"
    )
    assert (
        len(cli("eval", "bank/x", "--base", place.base, "--data", texts, "--max-rows", 2, "--json").json["texts"]) == 2
    )


def test_a_reward_model_of_another_base(train: Callable[..., Ended], cli: Cli, place: Place) -> None:
    assert train("--objective", "reward").code == 0
    ended = cli("eval", "bank/x", "--base", place.other, "--data", "pairs.jsonl")
    assert ended.code == 2 and "another weights" in ended.err


def test_look_shows_both_completions_of_a_pair(cli: Cli, place: Place, tmp_path: Path) -> None:
    data = jsonl(tmp_path / "pairs.jsonl", [*PAIRS[:3], PAIRS[0]])
    seen = cli("look", data, "--base", place.base, "--json").json
    assert (seen["rows"], seen["task"]) == (4, "pairs")
    pieces = seen["examples"][1]
    assert ["trained", "yes!"] in pieces and pieces[-1][0] == "rejected" and pieces[-1][1].startswith("no.")
    assert 0 < seen["trained_tokens"] < seen["tokens"]
    assert "1 pair repeats" in cli("look", data, "--base", place.base).out
    refused = cli("look", data, "--base", place.base, "--template", "{prompt} {chosen}")
    assert refused.code == 2 and "leave --template out" in refused.err


RANKED = [
    {
        "prompt": f"word {i}",
        "responses": ["no" + "." * (i % 4), "yes" + "!" * (i % 3), "well"],
        "ranks": [3, 1, (2, 3)[i % 2]],
    }
    for i in range(12)
]


@pytest.mark.parametrize(
    "flags",
    [("--objective", "reward"), ("--objective", "reward", "--loss", "plackett-luce"), ("--objective", "dpo")],
    ids=" ".join,
)
def test_ranked_responses_from_look_to_calibration(
    flags: tuple[str, ...], train: Callable[..., Ended], cli: Cli, place: Place
) -> None:
    made = train(*flags, pairs=RANKED).json
    assert made["pairs_per_s"] > made["rows_per_s"] > 0
    assert {"rewards/margin", "rewards/accuracy", "lengths/chosen"} <= set(made)
    seen = cli("look", "pairs.jsonl", "--base", place.base, "--json").json
    assert (seen["rows"], seen["task"]) == (12, "ranked responses")
    pieces = seen["examples"][1]
    assert ["trained", "yes!"] in pieces
    assert [text.split("<")[0] for kind, text in pieces if kind == "rejected"] == ["no.", "well"]
    ended = cli("eval", "bank/x", "--base", place.base, "--data", "pairs.jsonl", "--plot", "plot.html", "--json")
    assert (ended.json["rows"], ended.json["pairs"]) == (12, 6 * 3 + 6 * 2)
    assert ended.json["score"] > 0.5 and "rows it was trained on" in ended.err
    assert "over 30 pairs" in Path("plot.html").read_text(encoding="utf-8")
    few = cli("eval", "bank/x", "--base", place.base, "--data", "pairs.jsonl", "--max-rows", 2, "--json").json
    assert (few["rows"], few["pairs"]) == (2, 5)


ROW = RANKED[0]
BAD_RANKED: dict[str, tuple[tuple[object, ...], list[Any], str]] = {
    "lengths": (("--objective", "reward"), [{**ROW, "ranks": [1, 2]}], "line 1: ranks has 2 numbers for 3 responses"),
    "tied": (("--objective", "dpo"), [ROW, {**ROW, "ranks": [2, 2, 2]}], "line 2: all ranks are equal"),
    "one": (("--objective", "dpo"), [{**ROW, "responses": ["a"], "ranks": [1]}], "line 1: responses has 1 text"),
    "margin": (("--objective", "reward", "--loss", "scaled"), RANKED, "line 1 has ranks, which do not say how much"),
    "template": (("--objective", "reward", "--template", "{prompt} {ranks}"), RANKED, "leave --template out"),
    "sft": ((), RANKED, "expected prompt and completion"),
    "loss of the other": (("--objective", "dpo", "--loss", "plackett-luce"), RANKED, "--loss"),
}


@pytest.mark.parametrize("name", BAD_RANKED)
def test_bad_ranked_responses(name: str, train: Callable[..., Ended]) -> None:
    arguments, rows, said = BAD_RANKED[name]
    ended = train(*arguments, pairs=rows)
    assert (ended.code, ended.out) == (2, "")
    assert said in " ".join(ended.err.split()) and "Traceback" not in ended.err
    assert not Path("bank/x").exists()


def test_compare_by_pairs(cli: Cli, place: Place, tmp_path: Path) -> None:
    data = jsonl(tmp_path / "pairs.jsonl", PAIRS * 4)
    asked = ("compare", "--base", place.base, "--data", data, "--dtype", "float32", "--out", "run", "--json")
    short = ("--budget-tokens", 3000, "--methods", "zero-shot,lora", "--max-new-tokens", 4, "--generate-rows", 2)
    found = cli(*asked, *short, "--objective", "dpo", "--beta", 0.5).json
    assert (found["metric"], found["data"]["objective"]) == ("preference_accuracy", "dpo")
    assert found["rows"][0]["score"] == 0.5 and found["rows"][1]["score"] > 0.5
    record = json.loads(Path("run/bank/lora/customization.json").read_text(encoding="utf-8"))
    assert record["objective_settings"]["beta"] == 0.5
    assert "Preference accuracy" in Path("run/report.html").read_text(encoding="utf-8")
    assert "--beta" in cli("compare", "--objective", "dpo", "--help").out


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--objective", "ppo"), "--reward: is missing"),
        (("--objective", "attributes", "--columns", "a"), "attributes is not compared yet: take sft, dpo or reward"),
        (("--objective", "reward", "--judge", "words:3"), "--judge: a reward model writes nothing"),
        (("--objective", "reward", "--all-probes"), "--all-probes: a reward model writes nothing"),
        (("--objective", "dpo", "--template", "{prompt}{chosen}"), "leave --template out"),
        (("--beta", "0.5"), "--beta"),
    ],
)
def test_what_is_not_compared(more: tuple[str, ...], says: str, cli: Cli, place: Place, tmp_path: Path) -> None:
    data = jsonl(tmp_path / "pairs.jsonl", PAIRS)
    ended = cli("compare", "--base", place.base, "--data", data, "--out", "run", *more)
    assert ended.code == 2 and says in ended.err and not Path("run").exists()
