"""``predict``: new rows through an entry's own template; and rows of columns in ``generate --batch``."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.cli.conftest import PATTERN, ROWS, Ended, Place, jsonl

from tunescope.evaluation.statistics import wilson_interval

Cli = Callable[..., Ended]
pytestmark = pytest.mark.usefixtures("trained")


def rows_of(path: str) -> list[dict[str, str]]:
    with Path(path).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def new(path: str, rows: list[dict[str, Any]]) -> Path:
    with Path(path).open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return Path(path)


def test_new_rows_get_labels_with_probabilities(place: Place, cli: Cli) -> None:
    """What the README shows: train on labelled rows, then predict rows that have no label, and type no template."""
    data = new("new.csv", [{"id": i, "text": row["text"]} for i, row in enumerate(ROWS)])
    said = cli("predict", place.bank / "lora", "--data", data, "--out", "answers.csv", "--json").json
    rows = rows_of("answers.csv")
    assert list(rows[0]) == ["id", "text", "prediction", "probability", "probability_warm", "probability_wet"]
    assert [(row["id"], row["text"]) for row in rows] == [(str(i), row["text"]) for i, row in enumerate(ROWS)]
    for row in rows:
        each = {label: float(row[f"probability_{label}"]) for label in ("warm", "wet")}
        assert row["prediction"] == max(each, key=lambda label: each[label])
        assert float(row["probability"]) == max(each.values()) and sum(each.values()) == pytest.approx(1)
    assert (said["rows"], said["unanswered"], said["resumed"], said["file"]) == (40, 0, 0, "answers.csv")
    assert sum(said["labels"].values()) == 40 and said["accuracy"] is None
    people = cli("predict", place.bank / "lora", "--data", data, "--out", "people.csv")
    assert "predicting: 40/40 rows" in people.err and "labels" in people.out and "accuracy" not in people.out


def test_rows_with_labels_say_the_accuracy(place: Place, cli: Cli) -> None:
    mixed = [row if i % 2 else {"text": row["text"]} for i, row in enumerate(ROWS)]
    mixed[1] = {**mixed[1], "label": "stormy"}
    arguments = ("predict", place.bank / "lora", "--data", jsonl(Path("new.jsonl"), mixed), "--out")
    ended = cli(*arguments, "answers.jsonl", "--json")
    rows = [json.loads(line) for line in Path("answers.jsonl").read_text().splitlines()]
    right = sum(row["prediction"] == row.get("label") for row in rows)
    interval = wilson_interval(right, 20)
    assert ended.json["labelled_rows"] == 20 and ended.json["accuracy"] == right / 20
    assert [ended.json["accuracy_low"], ended.json["accuracy_high"]] == [interval.low, interval.high]
    assert "labels that training did not: stormy. They count as wrong" in ended.err
    assert list(rows[0]) == ["text", "prediction", "probability", "probabilities"]
    assert list(rows[1]) == ["text", "label", "prediction", "probability", "probabilities"]
    said = " ".join(cli(*arguments, "again.jsonl").out.split())
    assert f"accuracy {right / 20:.1%} ({interval.low:.1%} to {interval.high:.1%}) of 20 rows" in said


def test_an_entry_without_labels_writes_texts(place: Place, cli: Cli) -> None:
    data = jsonl(Path("free.jsonl"), [{"prompt": f"say {i}", "completion": f"one {i}"} for i in range(8)])
    assert cli("train", "zero-shot", "--base", place.base, "--data", data, "--out", "b/free").code == 0
    ended = cli("predict", "b/free", "--data", data, "--out", "a.tsv", "--max-new-tokens", 3, "--json")
    assert ended.json["labels"] is None and "cut at 3 tokens. --max-new-tokens allows more" in ended.err
    header, *rows = Path("a.tsv").read_text(encoding="utf-8").split("\n")
    assert header == "prompt\tcompletion\tprediction" and len(rows) >= 8


def test_the_full_method_answers_with_its_own_weights(place: Place, cli: Cli) -> None:
    out = {}
    for name in ("full", "zero-shot"):
        cli("predict", place.bank / name, "--data", place.data, "--out", f"{name}.csv", "--dtype", "float32")
        out[name] = [row["probability"] for row in rows_of(f"{name}.csv")]
    assert len(out["full"]) == 40 and out["full"] != out["zero-shot"]


def test_what_cannot_be_done_says_why_and_writes_nothing(place: Place, cli: Cli) -> None:
    entry, good = place.bank / "lora", new("good.csv", [{"text": "x"}])
    Path("mine.csv").write_text("mine")
    bad = jsonl(Path("bad.jsonl"), [{"text": "x"}, {"text": ""}, {"text": "y"}])
    for arguments, words in (
        ((entry, "--data", bad, "--out", "o.csv"), "line 2: text is empty"),
        ((entry, "--data", new("c.csv", [{"body": "x"}]), "--out", "o.csv"), "the template names text"),
        ((entry, "--data", new("p.csv", [{"text": "x", "prediction": "y"}]), "--out", "o.csv"), "column prediction"),
        ((entry, "--data", good, "--out", "o.txt"), "cannot tell the format"),
        ((entry, "--data", good, "--out", "mine.csv"), "exists already"),
        ((entry, "--data", good, "--out", "mine.csv", "--overwrite"), "not written by tunescope"),
        ((entry, "--data", good, "--out", good, "--overwrite"), "not written by tunescope"),
        ((entry, "--data", good, "--out", "o.csv", "--max-new-tokens", 3), "--max-new-tokens has no meaning"),
        ((entry, "--data", "none.csv", "--out", "o.csv"), "There is no file none.csv"),
        ((entry, "--data", good, "--out", "o.csv", "--base", place.other), "has another weights"),
        ((place.bank / "lor", "--data", good, "--out", "o.csv"), "Did you mean lora"),
    ):
        ended = cli("predict", *arguments)
        assert ended.code == 2 and words in " ".join(ended.err.split()), (arguments, ended.err)
    assert not list(Path().glob("o.*")) and not list(Path().glob(".o.*")) and Path("mine.csv").read_text() == "mine"
    ended = cli("predict", entry, "--data", bad, "--out", "o.csv", "--skip-bad", 1, "--json")
    assert ended.json["unanswered"] == 1
    assert [row["error"] for row in rows_of("o.csv")] == ["", "line 2: text is empty", ""]


def test_training_on_labels_says_what_comes_next(place: Place, cli: Cli) -> None:
    arguments = ("train", "zero-shot", "--base", place.base, "--template", PATTERN)
    said = cli(*arguments, "--data", place.data, "--out", "b/the kinds").out
    command = "tunescope predict 'b/the kinds' --data new.csv --out answers.csv"
    assert command in said
    few = jsonl(Path("few.jsonl"), ROWS[:3])
    assert "tunescope predict" not in cli(*arguments, "--data", few, "--out", "b/texts").out
    ended = cli("generate", "b/the kinds", "a prompt", "--max-new-tokens", 1)
    assert ended.code == 0 and command in ended.err
    assert "predict" not in cli("generate", "b/the kinds", "a prompt", "--choice", "a", "--choice", "b").err


def test_rows_of_a_batch_are_rendered_by_the_template(place: Place, cli: Cli) -> None:
    assert cli("predict", place.bank / "lora", "--data", place.data, "--out", "a.jsonl", "--dtype", "float32").code == 0
    predicted = [json.loads(line) for line in Path("a.jsonl").read_text().splitlines()]
    rows: list[dict[str, Any]] = [
        {"row": {"text": ROWS[0]["text"]}, "customization": "lora"},
        {"row": ROWS[1], "customization": "lora"},  # the true label is no part of the prompt
        {"row": ROWS[2], "customization": "lora", "choices": [], "max_new_tokens": 4},
        {"prompt": f"{ROWS[2]['text']} topic:", "customization": "lora", "max_new_tokens": 4},
        {"row": {"prompt": "hello"}, "max_new_tokens": 2},
        {"prompt": "hello", "max_new_tokens": 2},
        {"row": ROWS[0], "customization": "zero-shot", "choices": ["a", "b"]},
        {"row": {"body": "x"}, "customization": "lora"},
        {"row": {"text": " "}, "customization": "lora"},
        {"row": {}, "customization": "lora"},
        {"row": "text", "customization": "lora"},
        {"row": ROWS[0], "prompt": "x", "customization": "lora"},
        {"row": ROWS[0], "customization": "lorra"},
    ]
    ended = cli(
        "generate", "--bank", place.bank, "--batch", jsonl(Path("b.jsonl"), rows), "--json", "--dtype", "float32",
        "--temperature", 1, "--top-k", 5,
    )  # fmt: skip
    *answers, totals = [json.loads(line) for line in ended.out.splitlines()]
    for i in (0, 1):
        assert answers[i]["text"] == predicted[i]["prediction"] and answers[i]["reason"] == "choice"
        assert answers[i]["probabilities"] == pytest.approx(predicted[i]["probabilities"], abs=1e-5)
    assert "choice_logprobs" not in answers[2]
    assert answers[2]["prompt_tokens"] == answers[3]["prompt_tokens"]
    assert answers[4]["prompt_tokens"] == answers[5]["prompt_tokens"]
    for i, words in {
        6: "leave top_k", 7: "the template names text, but the columns are body", 8: "text is empty",
        9: "row is dict '{}'", 10: "row is str 'text', expected an object of columns", 11: "and one of them",
        12: "Did you mean lora",
    }.items():  # fmt: skip
        assert words in answers[i]["error"], (i, answers[i])
    assert totals["failed"] == 7
    assert '{"row": {"text"' in " ".join(cli("generate", "--help").out.replace("│", " ").split())


def test_a_stopped_call_goes_on(place: Place, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    from tunescope.inference import prediction

    arguments = ("predict", place.bank / "lora", "--data", place.data, "--out")
    assert cli(*arguments, "whole.csv").code == 0
    monkeypatch.setattr(prediction, "_TOGETHER", 16)
    score, calls = prediction.score, iter([None, None, KeyboardInterrupt])

    def stops(*given: Any) -> Any:
        if stop := next(calls):
            raise stop
        return score(*given)

    monkeypatch.setattr(prediction, "score", stops)
    ended = cli(*arguments, "o.csv")
    assert ended.code == 130 and "Stopped after 32 of 40 rows." in ended.err and not Path("o.csv").exists()
    monkeypatch.setattr(prediction, "score", score)
    ended = cli(*arguments, "o.csv", "--split", "x")
    assert ended.code == 2
    other = shutil.copy(place.data, "other.jsonl")
    Path(other).write_text(Path(other).read_text().replace("sun", "sea"))
    assert "other settings (data)" in cli(*arguments[:3], other, "--out", "o.csv").err
    assert cli(*arguments, "o.csv", "--json").json["resumed"] == 32
    numbers = [[row[name] for name in row if "prob" in name] for row in rows_of("o.csv")]
    wanted = [[row[name] for name in row if "prob" in name] for row in rows_of("whole.csv")]
    assert [[float(n) for n in row] for row in numbers] == [pytest.approx([float(n) for n in row]) for row in wanted]
