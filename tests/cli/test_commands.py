"""Each command does what it says, for people and for machines."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.cli.conftest import PATTERN, ROWS, Ended, Place, jsonl

Cli = Callable[..., Ended]
EVAL_KEYS = {
    "nll_per_token", "tokens", "accuracy", "forgetting_on", "forgetting_off", "trainable_parameters", "ttft_ms",
    "ms_per_token", "peak_memory_mb",
}  # fmt: skip
TRAIN_KEYS = {
    "steps", "seconds", "rows_per_s", "tokens_per_s", "pad_fraction", "peak_memory_mb", "loss", "path",
}  # fmt: skip


def script(*arguments: object, code: str = "from tunescope.cli import main; main()", **options: Any) -> Any:
    """The command as a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, timeout=120, **options
    )


# Starting


def test_help_loads_no_tensor_library() -> None:
    code = (
        "import sys, atexit\n"
        "heavy = ('torch', 'transformers', 'numpy', 'accelerate', 'datasets', 'sklearn', 'plotly', 'pyarrow')\n"
        "atexit.register(lambda: print('loaded:', [name for name in heavy if name in sys.modules], file=sys.stderr))\n"
        "from tunescope.cli import main\n"
        "main(sys.argv[1:])\n"
    )
    for arguments in (
        ["--help"],
        ["look", "--help"],
        ["eval", "--help"],
        ["predict", "--help"],
        ["bank", "--help"],
        ["bank", "merge", "--help"],
        ["pull", "--help"],
        ["run", "--help"],
        ["doctor", "--help"],
    ):
        ended = script(*arguments, code=code)
        assert ended.returncode == 0
        assert "Usage: tunescope" in ended.stdout
        assert ended.stderr == "loaded: []\n", arguments


def test_help_lists_the_commands(cli: Cli) -> None:
    said = cli("--help").out
    for name in ("pull", "look", "train", "eval", "predict", "generate", "compare", "bank", "doctor"):
        assert f"\n  {name} " in said


def test_methods_are_subcommands_and_their_settings_flags(cli: Cli) -> None:
    said = cli("train", "--help").out
    assert all(f"\n  {name} " in said for name in ("zero-shot", "few-shot", "system", "lora", "full"))
    said = cli("train", "lora", "--help").out
    flags = ["--rank", "--alpha", "--targets", "--max-steps", "--epochs", "--batch-size", "--lr", "--dtype", "--seed"]
    assert all(flag in said for flag in [*flags, "--max-length", "--template", "--objective", "--out", "--json"])
    assert "--rank" not in cli("train", "full", "--help").out
    assert "--budget" in cli("compare", "--help").out


def test_training_starts_from_an_entry(place: Place, trained: dict[str, Ended], cli: Cli) -> None:
    given = ("--base", place.base, "--data", place.data, "--max-steps", 2, "--dtype", "float32", "--json")
    assert cli("train", "ia3", *given, "--from", place.bank / "lora", "--out", "bank/above").json["steps"] == 2
    assert cli("train", "lora", *given, "--continue", place.bank / "lora", "--out", "bank/further").json["steps"] == 2
    above, further = (
        cli("bank", "show", "bank/above", "--json").json,
        cli("bank", "show", "bank/further", "--json").json,
    )
    assert above["start"]["method"] == "lora" and above["template"]["pattern"] == PATTERN
    assert further["continued"]["name"] == str(place.bank / "lora") and further["start"] is None
    for entry in ("bank/above", "bank/further"):
        assert cli("bank", "verify", entry, "--json").json["verified"]
    off = cli(
        "eval", "bank/above", "--data", place.data, "--probe", place.probe, "--json"
    ).json["forgetting_off"]  # fmt: skip
    assert off == 0
    wrong = cli("train", "lora", *given, "--continue", place.bank / "lora", "--rank", 3, "--out", "bank/wrong")
    assert wrong.code == 2 and "--rank is 3" in wrong.err
    near = cli("train", "lora", *given, "--from", place.bank / "lorra", "--out", "bank/wrong")
    assert near.code == 2 and "lora" in near.err and not Path("bank/wrong").exists()


def test_a_process_of_its_own(place: Place, trained: dict[str, Ended]) -> None:
    ended = script("bank", "list", place.bank, "--json")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert [entry["name"] for entry in json.loads(ended.stdout)] == ["full", "lora", "zero-shot"]
    ended = script("lok")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "Did you mean 'look'?" in ended.stderr


def test_a_reader_that_goes_away() -> None:
    arguments = [sys.executable, "-c", "from tunescope.cli import main; main()", "--help"]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""


def test_control_c(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tunescope.commands.doctor.DoctorRequest.run", interrupt)
    ended = cli("doctor")
    assert ended.code == 130 and ended.err == "\nError: Stopped.\n"


# pull and doctor


def test_pull(place: Place, cli: Cli) -> None:
    said = cli("pull", place.base, "--json").json
    assert said["folder"] == str(place.base)
    assert said["context"] == 512 and said["chat_template"] is True and said["parameters"] > 0
    people = cli("pull", place.base)
    assert people.code == 0 and said["fingerprint"] in people.out


def test_doctor(cli: Cli) -> None:
    said = cli("doctor", "--json").json
    assert {"torch", "device", "device_name", "cores", "memory_gb", "cache", "dtype"} <= said.keys()
    assert said["dtype"] in ("float32", "bfloat16")
    people = cli("doctor")
    assert people.code == 0 and "device_name" in people.out


# look


def test_look(place: Place, cli: Cli) -> None:
    said = cli("look", place.data, "--base", place.base, "--template", PATTERN, "--rows", 2, "--json").json
    assert (said["rows"], said["truncated"], said["dropped"], said["skipped"]) == (40, 0, 0, 0)
    assert said["task"] == "classification into warm, wet"
    assert said["shortest"] <= said["median"] <= said["longest"]
    assert said["trained_tokens"] == sum(len(row["label"]) + 1 for row in ROWS)
    assert len(said["examples"]) == 2
    assert said["examples"][0] == [
        ["template", "<|im_start|>"], ["prompt", "user\nthe sun of day 0 topic:"], ["template", "<|im_end|>"],
        ["prompt", "\n"], ["template", "<|im_start|>"], ["prompt", "assistant\n"], ["trained", "warm"],
        ["stop", "<|im_end|>"],
    ]  # fmt: skip


def test_look_for_people(place: Place, cli: Cli) -> None:
    said = cli("look", place.data, "--base", place.base, "--template", PATTERN).out
    assert "row of line 1" in said and "tokens a row" in said and "40 rows, classification" in said
    assert "Nothing is cut and no row is dropped." in said


@pytest.mark.parametrize("as_json", [False, True])
def test_nothing_in_data_acts_on_the_terminal(as_json: bool, place: Place, cli: Cli) -> None:
    """Colors, a title, a cursor, the eight-bit form of the same, and writing turned around; in rows and in labels."""
    acting = "\x1b[2J\x1b]0;title\x07\x9b31m\r\x08\x7f\u202eabc"
    jsonl(Path("acting.jsonl"), [{"text": f"{acting} {i}", "label": f"{'ab'[i % 2]}{acting}"} for i in range(6)])
    ended = cli("look", "acting.jsonl", "--base", place.base, "--template", PATTERN, *(["--json"] if as_json else []))
    assert ended.code == 0
    assert not set(ended.out + ended.err) & set("\x1b\x07\x9b\r\x08\x7f\u202e")
    if as_json:
        assert acting in "".join(piece for _, piece in ended.json["examples"][0])
    else:
        assert r"\x1b[2J" in ended.out and r"\u202eabc" in ended.out
    refused = cli("look", f"no{acting}.jsonl", "--base", place.base)
    assert refused.code == 2 and "\x1b" not in refused.err


def test_a_tilde_is_the_home_folder_however_it_is_written(
    place: Place, cli: Cli, trained: dict[str, Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    home = Path.cwd() / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    common = ("--base", place.base, "--data", place.data, "--template", PATTERN)
    assert cli("train", "zero-shot", *common, "--out=~/bank/zero").code == 0
    assert cli("bank", "export", place.bank / "lora", "--to=peft", "--out", "~/peft").code == 0
    assert cli("bank", "import", "~/peft", "--base", place.base, "--out=~/bank/back").code == 0
    assert cli("bank", "merge", "~/bank/back", "~/bank/back", "--out=~/bank/both").code == 0
    assert len(cli("bank", "list", "~/bank", "--json").json) == 3
    assert cli("bank", "show", "~nobody/x").code == 2
    assert sorted(path.name for path in Path.cwd().iterdir()) == ["home"]


def test_look_says_what_is_cut(place: Place, cli: Cli) -> None:
    rows = [{"prompt": "a" * 900, "completion": "b"}, {"prompt": "a", "completion": "b" * 900}, {"prompt": "a", "x": 1}]
    jsonl(Path("long.jsonl"), [*rows, *[{"prompt": "a", "completion": "b"}] * 3])
    said = cli("look", "long.jsonl", "--base", place.base, "--skip-bad", 1, "--json").json
    assert (said["truncated"], said["dropped"], said["skipped"], said["longest"]) == (1, 1, 1, 512)
    people = cli("look", "long.jsonl", "--base", place.base, "--skip-bad", 1).out
    assert "1 prompt was cut to fit 512 tokens" in people and "(line 2)" in people
    nothing = cli("look", "long.jsonl", "--base", place.base, "--skip-bad", 1, "--max-length", 2)
    assert nothing.code == 0 and "0 tokens" in nothing.out


def test_look_marks_every_trained_turn_and_its_stop(place: Place, cli: Cli) -> None:
    turns = [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    jsonl(Path("turns.jsonl"), [{"messages": [{"role": role, "content": text} for role, text in turns]}])
    (example,) = cli("look", "turns.jsonl", "--base", place.base, "--json").json["examples"]
    assert [text for kind, text in example if kind == "trained"] == ["b", "d"]
    assert [text for kind, text in example if kind == "stop"] == ["<|im_end|>"] * 2


# train


def test_train(place: Place, trained: dict[str, Ended]) -> None:
    for method, steps in (("zero-shot", 0), ("lora", 6), ("full", 3)):
        said = trained[method].json
        assert said.keys() >= TRAIN_KEYS
        assert said["steps"] == steps and said["path"] == str(place.bank / method)
        assert 0 <= said["pad_fraction"] < 1
    assert trained["lora"].json["tokens_per_s"] > 0
    assert "step 6/6" in trained["lora"].err
    assert sorted(path.name for path in place.bank.iterdir() if path.name[0] != ".") == ["full", "lora", "zero-shot"]
    assert not list((place.bank / ".training").glob("*"))


def test_train_for_people(place: Place, cli: Cli) -> None:
    jsonl(Path("rows.jsonl"), [{"prompt": "a", "completion": "b"}] * 4 + [{"prompt": "c"}])
    ended = cli(
        "train", "lora", "--base", place.base, "--data", "rows.jsonl", "--max-steps", 2, "--out", "bank/x",
        "--rank", 2, "--targets", "q,v,down", "--rank-pattern", "down=1", "--skip-bad", 1,
    )  # fmt: skip
    assert ended.code == 0
    assert (
        "left out 1 bad row, as --skip-bad allows." in ended.err
        and "step 2/2" in ended.err
        and "not read" not in ended.err
    )
    assert "tokens_per_s" in ended.out and "bank/x" in ended.out
    settings = cli("bank", "show", "bank/x", "--json").json["method_settings"]
    assert (settings["rank"], settings["targets"], settings["rank_pattern"]) == (2, ["q", "v", "down"], {"down": 1})


def test_columns_that_nothing_reads_are_said(place: Place, cli: Cli) -> None:
    row = {"prompt": "a", "completion": "b"}
    jsonl(Path("rows.jsonl"), [row] * 12 + [row | {"note": "c", "id": 1}])
    jsonl(Path("pairs.jsonl"), [{"prompt": "a", "chosen": "b", "rejected": "c", "margins": 2}] * 3)
    base = ("--base", place.base, "--style", "plain")
    short = ("--max-steps", 1, "--objective", "dpo", "--data", "pairs.jsonl")
    assert (
        "rows.jsonl: not read: id, note."
        in cli("train", "zero-shot", *base, "--data", "rows.jsonl", "--out", "bank/x").err
    )
    assert "pairs.jsonl: not read: margins." in cli("train", "ia3", *base, *short, "--out", "bank/y").err
    assert "rows.jsonl: not read: id, note." in cli(
        "compare", *base, "--data", "rows.jsonl", "--out", "c", "--methods", "zero-shot", "--budget", "30s",
        "--probe", place.probe, "--generate-rows", 1, "--max-new-tokens", 2,
    ).err  # fmt: skip


def test_train_replaces_only_when_told(place: Place, cli: Cli) -> None:
    again = [
        "train", "zero-shot", "--base", place.base, "--data", place.data, "--template", PATTERN, "--out", "bank/x",
    ]  # fmt: skip
    assert cli(*again).code == 0
    refused = cli(*again)
    assert refused.code == 2 and "bank/x exists already" in refused.err and "--overwrite" in refused.err
    assert cli(*again, "--overwrite").code == 0


def test_train_a_composition(place: Place, cli: Cli) -> None:
    ended = cli(
        "train", "lora+prompt-tuning", "--base", place.base, "--data", place.data, "--template", PATTERN,
        "--max-steps", 1, "--rank", 2, "--out", "bank/x", "--json",
    )  # fmt: skip
    assert ended.json["steps"] == 1
    assert cli("bank", "show", "bank/x", "--json").json["method"] == "prompt-tuning+lora"


@pytest.mark.parametrize("method", ["few-shot", "system"])
def test_prompting_adds_text(method: str, place: Place, cli: Cli) -> None:
    ended = cli(
        "train", method, "--base", place.base, "--data", place.data, "--template", PATTERN, "--out", "bank/x", "--json"
    )
    assert ended.json["pad_fraction"] == 0
    template = cli("bank", "show", "bank/x", "--json").json["template"]
    assert template["shots"] if method == "few-shot" else "warm, wet" in template["system"]


# eval and generate


@pytest.mark.parametrize("method", ["zero-shot", "lora", "full"])
def test_eval(method: str, place: Place, trained: dict[str, Ended], cli: Cli) -> None:
    ended = cli(
        "eval", place.bank / method, "--data", place.data, "--probe", place.probe, "--max-rows", 6,
        "--generate-rows", 2, "--json",
    )  # fmt: skip
    card = ended.json
    assert card.keys() >= EVAL_KEYS and "per_row" not in card
    assert (card["rows"], card["generated_rows"], card["metric"]) == (6, 2, "accuracy")
    assert card["accuracy"] in [i / 6 for i in range(7)]
    assert "rows it was trained on" in ended.err
    if method == "lora":
        assert card["forgetting_off"] == 0.0 != card["forgetting_on"]
    assert cli("bank", "show", place.bank / method, "--json").json["card"]["nll_per_token"] == card["nll_per_token"]


def test_eval_the_base_on_questions(place: Place, cli: Cli) -> None:
    jsonl(Path("probe.jsonl"), [{"question": "2+2?", "choices": ["4", "5"], "answer": i % 2} for i in range(4)])
    ended = cli(
        "eval", "--base", place.base, "--data", place.data, "--template", PATTERN, "--probe", "probe.jsonl",
        "--max-rows", 4, "--generate-rows", 1,
    )  # fmt: skip
    assert ended.code == 0
    assert "0.500 [0.150, 0.850] (base 0.500, 4 questions)" in ended.out


def test_eval_texts(place: Place, cli: Cli) -> None:
    jsonl(Path("rows.jsonl"), [{"prompt": f"say {i}", "completion": f"words {i}"} for i in range(3)])
    ended = cli(
        "eval", "--base", place.base, "--data", "rows.jsonl", "--probe", place.probe, "--max-new-tokens", 4, "--json"
    )
    assert ended.json["accuracy"] is None and ended.json["metric"] == "chrf"


def test_generate(place: Place, trained: dict[str, Ended], cli: Cli) -> None:
    ended = cli("generate", place.bank / "lora", "one", "two", "--max-new-tokens", 3, "--json")
    assert ended.code == 0
    said = [json.loads(line) for line in ended.out.splitlines()]
    assert [(line["prompt"], line["customization"]) for line in said] == [
        ("one", str(place.bank / "lora")),
        ("two", str(place.bank / "lora")),
    ]
    assert all(line["tokens"] <= 3 for line in said)
    assert cli("generate", "--base", place.base, "one", "--max-new-tokens", 3).code == 0


@pytest.mark.parametrize(
    "prompt", ["x" * 400, "and/or", "a/b c/d", "http://example.org/x", "~nobody/x", "日本", "[red]"]
)
def test_any_text_is_a_prompt(prompt: str, place: Place, cli: Cli) -> None:
    ended = cli("generate", "--base", place.base, prompt, "--max-new-tokens", 2, "--json")
    assert ended.json["prompt"] == prompt


def test_sampling_is_repeatable(place: Place, cli: Cli) -> None:
    arguments = [
        "generate", "--base", place.base, "hi", "--temperature", 1.5, "--top-p", 0.9, "--max-new-tokens", 8,
    ]  # fmt: skip
    said = [cli(*arguments, "--seed", seed).out for seed in (1, 1, 2)]
    assert said[0] == said[1] != said[2]


# bank


def test_bank(place: Place, trained: dict[str, Ended], cli: Cli) -> None:
    people = cli("bank", "list", place.bank).out
    assert all(name in people for name in ("lora", "full", "zero-shot"))
    shown = cli("bank", "show", place.bank / "lora")
    assert shown.code == 0 and "base.fingerprint" in shown.out
    record = cli("bank", "show", place.bank / "lora", "--json").json
    assert record["labels"] == ["warm", "wet"] and record["template"]["pattern"] == PATTERN
    Path("empty").mkdir()
    assert "has no entries" in cli("bank", "list", "empty").out
    assert cli("bank", "list", "empty", "--json").json == []


def test_a_damaged_entry_does_not_hide_the_others(place: Place, trained: dict[str, Ended], cli: Cli) -> None:
    shutil.copytree(place.bank / "lora", "bank/good")
    shutil.copytree(place.bank / "lora", "bank/bad")
    Path("bank/bad/customization.json").write_text("{")
    ended = cli("bank", "list", "bank", "--json")
    assert [entry["name"] for entry in ended.json] == ["good"]
    assert "bank/bad/customization.json is damaged" in " ".join(ended.err.split())


# compare


@pytest.fixture(scope="module")
def compared(place: Place, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ended]:
    from tests.cli.conftest import command

    out = tmp_path_factory.mktemp("compare") / "run"
    ended = command(
        "compare", "--base", place.base, "--data", place.data, "--template", PATTERN, "--probe", place.probe,
        "--budget", "60s", "--epochs", 1, "--generate-rows", 2, "--max-new-tokens", 4, "--methods",
        "zero-shot,few-shot,lora,full,lora", "--dtype", "float32", "--out", out, "--json",
    )  # fmt: skip
    return out, ended


def test_compare(compared: tuple[Path, Ended]) -> None:
    out, ended = compared
    said = ended.json
    assert [row["method"] for row in said["rows"]] == ["zero-shot", "few-shot", "lora", "full"]
    for row in said["rows"]:
        assert row.keys() >= EVAL_KEYS | {"method", "seconds"}
        assert row["accuracy"] is not None and row["forgetting_on"] is not None
    assert said["report"] == str(out / "report.html")
    assert json.loads((out / "comparison.json").read_text()) == said
    assert "<html" in (out / "report.html").read_text()
    assert "lora: lr 0.001" in ended.err and "on the test rows" in ended.err
    assert said["split"] == "test" and not said["test_seen"]
    for row in said["rows"]:
        assert row["candidates"] == len(row["search"]) and row["seeds"] == len(row["scores"])


def test_compare_again_repeats_nothing(compared: tuple[Path, Ended], place: Place, cli: Cli) -> None:
    out, before = compared
    arguments = [
        "compare", "--base", place.base, "--data", place.data, "--template", PATTERN, "--probe", place.probe,
        "--epochs", 1, "--generate-rows", 2, "--max-new-tokens", 4, "--methods", "zero-shot,lora", "--dtype", "float32",
        "--out", out,
    ]  # fmt: skip
    ended = cli(*arguments, "--budget", "1m")
    assert ended.code == 0
    assert "step" not in ended.err and "Report:" in ended.out and "zero-shot" in ended.out
    further = cli(*arguments, "--budget", "2m", "--json")  # more time goes on from what is there
    assert further.code == 0 and further.json["test_seen"]
    refused = cli(*arguments, "--budget", "1m", "--batch-size", 4)
    assert refused.code == 2 and "settings" in refused.err and "--restart" in refused.err
    assert before.code == 0


def test_train_measures_validation_rows(cli: Cli, place: Place) -> None:
    unseen = jsonl(Path("unseen.jsonl"), ROWS[:5])
    options = ("--data", place.data, "--template", PATTERN, "--max-steps", 2, "--out", "bank/a", "--json")
    found = cli("train", "lora", "--base", place.base, *options, "--validation", unseen).json
    assert found["validation_loss"] > 0


def test_train_refuses_validation_rows_it_cannot_measure(cli: Cli, place: Place) -> None:
    options = ("--data", place.data, "--template", PATTERN, "--out", "bank/a")
    for method, more, said in (
        ("lora", ("--validation", "nowhere.jsonl"), "nowhere.jsonl"),
        ("lora", ("--validate-every", 3), "give rows with --validation"),
        ("zero-shot", ("--validation", place.data), "trains nothing"),
    ):
        ended = cli("train", method, "--base", place.base, *options, *more)
        assert ended.code == 2 and said in ended.err and not Path("bank/a").exists()
