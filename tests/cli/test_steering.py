"""Attributes on the command line: trained, annotated, asked for, measured; and their bad input."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.cli.conftest import Ended, Place, jsonl

Cli = Callable[..., Ended]
RATED = [
    {"prompt": f"say {i % 4}", "completion": f"{i:02d}" + "!" * (i % 5), "length": i % 5, "mood": (i * 3) % 5}
    for i in range(24)
]


@pytest.fixture
def judge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "cli_lengths.py").write_text("def length(prompt, completion):\n    return len(completion) - 2\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    return "length=cli_lengths:length"


@pytest.fixture(scope="module")
def made(place: Place) -> Path:
    """A bank with a steered entry and an attribute model."""
    from tests.cli.conftest import command

    data = jsonl(place.folder / "rated.jsonl", RATED)
    common = ("--base", place.base, "--data", data, "--dtype", "float32", "--max-steps", 4)
    steered = command("train", "lora", "--steer-columns", "length,mood", *common, "--out", place.bank / "steered")
    raters = command("train", "lora", "--objective", "attributes", "--columns", "length,mood", *common,
                     "--out", place.bank / "raters")  # fmt: skip
    assert (steered.code, raters.code) == (0, 0), steered.err + raters.err
    return place.bank


def test_from_labels_to_a_measured_entry(cli: Cli, place: Place, made: Path, judge: str, tmp_path: Path) -> None:
    rows = jsonl(tmp_path / "bare.jsonl", [{"prompt": row["prompt"], "completion": row["completion"]} for row in RATED])
    ended = cli("annotate", made / "raters", "--base", place.base, "--data", rows, "--out", "labelled.jsonl", "--json")
    assert ended.json["rows"] == 24 and set(ended.json["attributes"]) == {"length", "mood"}
    first = json.loads(Path("labelled.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert list(first) == ["prompt", "completion", "length", "mood"] and first["length"] in range(5)
    by = cli("annotate", "--base", place.base, "--data", rows, "--by", judge, "--out", "by.csv", "--json")
    assert by.json["attributes"]["length"] == {"0": 5, "1": 5, "2": 5, "3": 5, "4": 4}
    held = jsonl(tmp_path / "held.jsonl", RATED[:7])
    accuracy = cli("eval", made / "raters", "--base", place.base, "--data", held, "--by", judge, "--json")
    own = accuracy.json["attributes"]["length"]
    assert own["by"] == "cli_lengths:length" and own["by_spearman"] == pytest.approx(1) and own["by_mae"] < 1e-6
    assert own["mae"] > 0 and own["constant_mae"] > 0
    shown = cli("eval", made / "raters", "--base", place.base, "--data", held)
    assert "rank correlation" in shown.out
    prompts = jsonl(tmp_path / "prompts.jsonl", [{"prompt": f"say {i}"} for i in range(3)])
    steering = cli("eval", made / "steered", "--base", place.base, "--data", prompts, "--by", judge, "--by",
                   "mood=sentiment", "--max-new-tokens", 4, "--json")  # fmt: skip
    assert steering.json["samples"] == 30 and set(steering.json["leakage"]["length"]) == {"length", "mood"}
    record = json.loads((made / "steered" / "customization.json").read_text(encoding="utf-8"))
    assert record["template"]["steering"]["attributes"][0] == {"name": "length", "default": 2}
    assert record["card"]["samples"] == 30


def test_asked_for_by_flag_by_row_and_in_predictions(cli: Cli, place: Place, made: Path, tmp_path: Path) -> None:
    said = cli(
        "generate", made / "steered", "--base", place.base, "hello", "--steer", "length=4", "--max-new-tokens", 3
    )
    assert said.code == 0, said.err
    rows = [
        {"prompt": "a", "customization": "steered", "steer": {"length": 1}, "max_new_tokens": 2},
        {"prompt": "a", "customization": "steered", "max_new_tokens": 2},
        {"prompt": "a", "customization": "steered", "steer": {"tone": 1}},
        {"prompt": "a", "customization": "steered", "steer": {"length": 7}},
        {"prompt": "a", "steer": {"length": 1}},
        {"prompt": "a", "steer": [1]},
    ]
    batch = jsonl(tmp_path / "batch.jsonl", rows)
    ended = cli("generate", "--base", place.base, "--bank", made, "--batch", batch, "--json")
    errors = [json.loads(line).get("error") for line in ended.out.splitlines()[:6]]
    assert errors[:2] == [None, None] and ended.code == 2
    for error, part in zip(
        errors[2:], ("Unknown attribute 'tone'", "0 to 4", "leave steer out", "steer is"), strict=True
    ):
        assert part in error
    data = jsonl(tmp_path / "prompts.jsonl", [{"prompt": "say 1"}, {"prompt": "say 2"}])
    answers = cli("predict", made / "steered", "--base", place.base, "--data", data, "--steer", "length=4,mood=0",
                  "--temperature", 1, "--max-new-tokens", 3, "--out", "answers.jsonl", "--json")  # fmt: skip
    assert answers.json["rows"] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("generate", "ENTRY/steered", "hi", "--steer", "length"), "write quality=4"),
        (("generate", "ENTRY/steered", "hi", "--steer", "tone=1"), "Unknown attribute 'tone'. Known: length, mood"),
        (("generate", "ENTRY/raters", "hi", "--steer", "length=1"), "leave steer out"),
        (("annotate", "--data", "DATA", "--out", "o.jsonl"), "Say who labels"),
        (("annotate", "ENTRY/steered", "--data", "DATA", "--out", "o.jsonl"), "--objective attributes"),
        (("annotate", "ENTRY/raters", "--data", "DATA", "--out", "o.jsonl"), "has a column length already"),
        (("annotate", "ENTRY/raters", "--data", "DATA", "--out", "o.txt"), "cannot tell the format"),
        (("annotate", "--by", "x=tokens:3", "--data", "DATA", "--out", "o.jsonl"), "--base"),
        (("annotate", "--by", "tokens:3", "--base", "BASE", "--data", "DATA", "--out", "o.jsonl"), "who measures what"),
        (("annotate", "--by", "x=tokens:3", "--low", "4", "--high", "4", "--base", "BASE", "--data", "DATA", "--out",
          "o.jsonl"), "expected more than --low"),
        (("eval", "ENTRY/raters", "--data", "DATA", "--n", "2"), "has no meaning where an attribute model"),
        (("eval", "ENTRY/steered", "--data", "DATA", "--by", "length=tokens:3"), "Nobody measures mood"),
        (("eval", "ENTRY/raters", "--data", "BARE"), "has no values for length, mood"),
        (("predict", "ENTRY/raters", "--data", "BARE", "--out", "o.csv"), "tunescope annotate"),
        (("train", "lora", "--base", "BASE", "--data", "DATA", "--out", "b/x", "--steer-columns", "tone"),
         "has no values for tone"),
        (("train", "lora", "--base", "BASE", "--data", "DATA", "--out", "b/x", "--steer-columns", "a:b"),
         "cannot name"),
        (("train", "lora", "--base", "BASE", "--data", "DATA", "--out", "b/x", "--steer-place", "system"),
         "--steer-columns by what"),
        (("train", "lora", "--base", "BASE", "--data", "DATA", "--out", "b/x", "--steer-columns", "length",
          "--steer-high", "3"), "out of the range 0 to 3"),
        (("train", "lora", "--base", "BASE", "--data", "SAME", "--out", "b/x", "--steer-columns", "length"),
         "length is 1 in every row"),
        (("train", "lora", "--base", "BASE", "--data", "DATA", "--out", "b/x", "--objective", "attributes",
          "--columns", "length", "--scale-from", "5,1"), "scale_from"),
        (("train", "lora", "--base", "BASE", "--data", "DATA", "--out", "b/x", "--objective", "steerlm2", "--reward",
          "ENTRY/raters"), "--steer-columns"),
    ],
)  # fmt: skip
def test_bad_input(
    cli: Cli, place: Place, made: Path, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    rows = {
        "DATA": RATED,
        "BARE": [{"prompt": "a", "completion": "b"}],
        "SAME": [{"prompt": f"a{i}", "completion": "b", "length": 1} for i in range(3)],
    }
    given = []
    for argument in arguments:
        if argument in rows:
            argument = str(jsonl(tmp_path / f"{argument}.jsonl", rows[argument]))
        given.append(argument.replace("ENTRY", str(made)).replace("BASE", str(place.base)))
    before = sorted(tmp_path.rglob("*"))
    ended = cli(*given, *(("--base", place.base) if "ENTRY" in arguments[1] and "--base" not in arguments else ()))
    said = " ".join(ended.err.split())
    assert ended.code == 2 and message in said and "Traceback" not in said, said
    left = [path for path in tmp_path.rglob("*") if path not in before and path.is_file() and ".lock" not in path.name]
    assert not left, left
