"""Bad input: exit code 2, one message that names the thing and the remedy, no traceback, nothing half-written."""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from tests.cli.conftest import PATTERN, ROWS, Ended, Place, jsonl

from tunescope.settings import duration

Cli = Callable[..., Ended]


def files() -> set[str]:
    """Every file and folder of the working folder."""
    return {str(path) for path in Path().rglob("*")}


@pytest.fixture
def refused(cli: Cli) -> Callable[..., str]:
    """Run a command that must fail; gives the message.

    ``began`` is for failures after a run's own folder was made, which is left for a run that goes on.
    """

    def run(*arguments: object, began: bool = False) -> str:
        before = files()
        ended = cli(*arguments)
        assert ended.code == 2, (ended.out, ended.err)
        assert ended.out == ""
        assert "Traceback" not in ended.err
        assert ended.err.count("Error: ") == 1
        assert {path for path in files() if not began or not path.startswith("bank")} == before
        return ended.err.partition("Error: ")[2].strip()

    return run


@pytest.fixture
def train(refused: Callable[..., str], place: Place) -> Callable[..., str]:
    """A training run of LoRA that must fail, but for what the test says of it."""

    def run(*more: object, method: str = "lora", began: bool = False, **flags: object) -> str:
        values = {"base": place.base, "data": place.data, "template": PATTERN, "out": "bank/x", "max_steps": 2} | flags
        given = [part for name, value in values.items() if value is not None for part in (flag(name), value)]
        return refused("train", method, *given, *more, began=began)

    return run


@pytest.fixture
def compare(refused: Callable[..., str], place: Place) -> Callable[..., str]:
    """A comparison that must fail."""

    def run(*more: object, **flags: object) -> str:
        values = {
            "base": place.base, "data": place.data, "template": PATTERN, "out": "run", "probe": place.probe,
            "budget": "20s", "epochs": 1, "generate_rows": 2, "max_new_tokens": 4, "methods": "zero-shot",
        } | flags  # fmt: skip
        given = [part for name, value in values.items() if value is not None for part in (flag(name), value)]
        return refused("compare", *given, *more)

    return run


@pytest.fixture
def entry(place: Place, trained: dict[str, Ended], cli: Cli) -> Path:
    """A copy of a LoRA to spoil."""
    return Path(shutil.copytree(place.bank / "lora", "bank/mine"))


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


# Data

DATA: dict[str, tuple[bytes | None, str]] = {
    "nothing.jsonl": (None, "There is no file nothing.jsonl. Did you mean"),
    "empty.jsonl": (b"\n \n", "empty.jsonl holds no rows."),
    "column.jsonl": (
        b'{"txt": "a", "label": "b"}\n',
        "column.jsonl: the template names text, but the columns are label, txt.",
    ),
    "damaged.csv": (b"text,label\nd\xc3\xa9j\xc3\xa0,a\ncaf\xe9,b\n", "1 bad row.\n  line 3: is not valid UTF-8"),
    "damaged.jsonl": (b'{"text": "caf\xe9"}\n{"a": "d\xc3\xa9j\xc3\xa0"}', "line 1: is not valid UTF-8 (byte 14 of"),
    "quotes.csv": (
        b'text,label\n"open,a\nshut,b\n',
        "line 2: lines 2 to 3: a quotation mark opened here is never closed, or closed in another row; line 3 is",
    ),
    "columns.csv": (
        b"Text,label\na,b\n",
        "columns.csv: the template names text, but the columns are Text, label. Did you mean {Text}?",
    ),
    "broken.jsonl": (b'{"text": "a", "label": "b"}\n{"text":\n', "line 2: is not valid JSON"),
    "array.jsonl": (b"[1, 2]\n", "line 1: is a JSON array, expected an object"),
    "nan.jsonl": (b'{"text": "a", "label": NaN}\n', "NaN is not a JSON value"),
    "zero.parquet": (b"\0" * 10, "zero.parquet is not a readable Parquet file"),
    "header.csv": (b"text,label\n", "header.csv holds no rows."),
    "picture.png": (b"x", "picture.png: cannot tell the format from '.png'. Known: .jsonl"),
    "labels.jsonl": (b'{"text": "a", "label": ""}\n', "line 1: label is empty"),
}


@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize("command", ["look", "train", "compare", "eval"])
def test_data(command: str, name: str, place: Place, refused: Callable[..., str]) -> None:
    content, said = DATA[name]
    Path("near-nothing.jsonl").write_text("{}")
    if content is not None:
        Path(name).write_bytes(content)
    common = ["--base", place.base, "--template", PATTERN]
    arguments = {
        "look": ["look", name, *common],
        "train": ["train", "lora", "--data", name, "--out", "bank/x", *common],
        "compare": ["compare", "--data", name, "--out", "run", *common],
        "eval": ["eval", "--data", name, *common],
    }[command]
    assert said in refused(*arguments)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (".", ". is a folder. Name one file in it"),
        ("", ". is a folder"),
        ("rueters-r8", "'rueters-r8'. Did you mean reuters-r8 "),
        ("~nobody-of-that-name/x.jsonl", "There is no file ~nobody-of-that-name/x.jsonl"),
        ("x" * 400, "File name too long"),
        ("a/b/c.jsonl", "There is no file a/b/c.jsonl. Nor is there a folder a/b."),
    ],
)
def test_data_that_is_nowhere(data: str, said: str, train: Callable[..., str]) -> None:
    assert said in train(data=data)


def test_columns_that_need_a_template(train: Callable[..., str]) -> None:
    assert 'Other columns need a template, for example --template "{text} topic: {label}".' in train(template=None)


@pytest.mark.parametrize("template", ["text", "{label}", "{text} {label}!", "{text}"])
def test_template(template: str, train: Callable[..., str]) -> None:
    assert "must name at least one input field and end in the field to learn" in train(template=template)


def test_split(train: Callable[..., str]) -> None:
    assert "is one file and has no splits, so split 'tset' cannot be taken" in train(split="tset")


def test_too_many_bad_rows(train: Callable[..., str]) -> None:
    jsonl(Path("rows.jsonl"), [*ROWS, {"text": "a"}, {"text": 1.5, "label": None}])
    said = train(data="rows.jsonl", skip_bad=1)
    assert "rows.jsonl: 1 bad row.\n  line 42: label is missing, expected text" in said or "2 bad rows" in said


def test_rows_longer_than_the_context(train: Callable[..., str]) -> None:
    jsonl(Path("rows.jsonl"), [{"text": "a", "label": "b" * 600}] * 2)
    assert "none fits" in train(data="rows.jsonl", began=True)


@pytest.mark.parametrize("most", [2, 3])
def test_a_limit_that_no_row_fits(most: int, train: Callable[..., str]) -> None:
    assert "none fits" in train(max_length=most, began=True)


def test_a_label_unseen_in_training(entry: Path, place: Place, refused: Callable[..., str]) -> None:
    jsonl(Path("test.jsonl"), [*ROWS[:3], {"text": "snow", "label": "cold"}])
    said = refused("eval", entry, "--data", "test.jsonl", "--probe", place.probe)
    assert "labels that training did not: 'cold' (line 4). Known labels: warm, wet." in said


def test_a_label_unseen_in_training_stops_a_comparison(compare: Callable[..., str]) -> None:
    jsonl(Path("test.jsonl"), [*ROWS[:3], {"text": "snow", "label": "cold"}])
    assert "'cold' (line 4)" in compare(test="test.jsonl")


# Names


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["trian"], "No such command 'trian'. Did you mean 'train'?"),
        (["train", "lroa"], "Unknown method 'lroa'. Did you mean lora?"),
        (["train", "lora+"], "Unknown method ''."),
        (["train", "lora+full"], "full cannot be a part of a composition"),
        (["bank", "shwo", "x"], "No such command 'shwo'. Did you mean 'show'?"),
        (["look", "x", "--bse", "y"], "No such option '--bse'. (Did you mean one of: '--base'"),
        (["look", "x"], "Missing option '--base'"),
        (["pull"], "Missing argument"),
        (["pull", "smolm2-135m"], "'smolm2-135m'. Did you mean smollm2-135m?"),
        (["pull", "./nowhere"], "There is no nowhere."),
        (["pull", "~nobody-of-that-name/x"], "There is no ~nobody-of-that-name/x."),
        (["pull", "nothing.gguf"], "There is no nothing.gguf."),
        (["pull", "x" * 400], "File name too long"),
        (["pull", ""], "holds no config.json"),
        (["pull", "smollm2-135m", "--from", "hubb"], "Unknown source (--from) 'hubb'. Did you mean hub?"),
        (["generate", "hello"], "'hello' is no entry of a bank: name one, or a base with --base."),
        (["eval", "--data", "x.jsonl"], "Name what to measure: an entry of a bank, or a base with --base."),
        (["eval", "bank/x", "--data", "x.jsonl"], "bank/x is not a bank entry: it has no customization.json."),
        (["bank", "list", "bank"], "There is no folder bank. A bank is made by: tunescope train"),
        (["bank", "show", "bank/x"], "bank/x is not a bank entry"),
        (["compare"], "Missing option '--base'"),
    ],
)
def test_names(arguments: list[str], said: str, refused: Callable[..., str]) -> None:
    assert said in refused(*arguments)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"rnak": 4}, "No such option '--rnak'. (Did you mean one of: '--dora'"),
        ({"objective": "sfft"}, "Unknown objective 'sfft'. Did you mean sft?"),
        ({"dtype": "float23"}, "Unknown dtype 'float23'. Did you mean float32"),
        ({"style": "chatt"}, "Unknown style 'chatt'. Did you mean chat?"),
        ({"targets": "qq"}, "Unknown site 'qq'. Did you mean q?"),
        ({"targets": ""}, "must name at least one place"),
        ({"rank_pattern": "q"}, "--rank-pattern: 'q' is not key=value."),
        ({"rank_pattern": "q=x"}, "valid integer"),
        ({"rank_pattern": "zz=3"}, "Unknown site in rank_pattern 'zz'."),
        ({"layers": "99"}, "Layer 99 is not there: this base has layers 0 to 1."),
        ({"layers": "one"}, "--layers: Input should be a valid integer"),
    ],
)
def test_options(flags: dict[str, object], said: str, train: Callable[..., str]) -> None:
    assert said in train(**flags)


def test_trackers(train: Callable[..., str]) -> None:
    assert "Unknown tracker 'tensorbord'. Did you mean tensorboard?" in train(trackers="tensorbord", began=True)
    assert not Path("bank/x").exists()


def test_a_run_that_never_began_forbids_nothing(train: Callable[..., str], cli: Cli, place: Place) -> None:
    train(trackers="tensorbord", began=True)
    assert not list(Path().rglob("recipe.json"))
    again = cli(
        "train", "lora", "--base", place.base, "--data", place.data, "--template", PATTERN, "--out", "bank/x",
        "--max-steps", 1,
    )  # fmt: skip
    assert again.code == 0, again.err


@pytest.mark.parametrize("flags", [{"dtype": "float23"}, {"style": "chatt"}, {"methods": "zero-shot,lroa"}])
def test_options_of_compare(flags: dict[str, str], compare: Callable[..., str]) -> None:
    assert "Did you mean" in compare(**flags)


def test_chat_style_of_a_base_without_one(compare: Callable[..., str], train: Callable[..., str], place: Place) -> None:
    for run in (compare, train):
        assert "no chat template: use --style plain" in run(base=place.plain, style="chat")


@pytest.mark.parametrize("method", ["zero-shot", "system", "few-shot"])
def test_a_loop_setting_of_a_method_without_a_loop(method: str, train: Callable[..., str]) -> None:
    said = train(method=method, max_steps=None, lr=0.1)
    assert f"--lr: {method} trains nothing, so it has no meaning: leave it out." in said


# Numbers

NUMBERS: dict[str, tuple[object, ...]] = {
    "lr": ("nan", "inf", -1, 0, "fast"),
    "epochs": ("nan", "inf", -1, 0),
    "max_steps": (0, -3, 1.5),
    "batch_size": (0, -1),
    "accumulate": (0,),
    "warmup": (1, -0.1, "nan"),
    "weight_decay": (-1, "inf"),
    "max_grad_norm": (0, "nan"),
    "max_length": (1, 0, -5),
    "seed": (-1, 10**30),
    "checkpoint_every": (0,),
    "skip_bad": (-1,),
    "rank": (0, -2, 2.5, "nan"),
    "alpha": ("nan", 0),
    "dropout": (1, -0.5, "nan"),
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in NUMBERS.items() for value in values])
def test_numbers(name: str, value: object, train: Callable[..., str]) -> None:
    said = train(**{name: value})
    assert flag(name) in said


@pytest.mark.parametrize(
    "flags",
    [
        {"temperature": "nan"}, {"temperature": "inf"}, {"temperature": -1}, {"top_p": 0}, {"top_p": 1.5},
        {"top_p": "nan"}, {"max_new_tokens": 0}, {"max_new_tokens": 100_000}, {"seed": 10**30}, {"seed": -1},
    ],
)  # fmt: skip
def test_numbers_of_generate(flags: dict[str, object], place: Place, refused: Callable[..., str]) -> None:
    given = [part for name, value in flags.items() for part in (flag(name), value)]
    said = refused("generate", "--base", place.base, "hi", *given)
    assert next(iter(flags)) in said.replace("-", "_")


@pytest.mark.parametrize("prompt", ["", "  \n"])
def test_an_empty_prompt(prompt: str, place: Place, refused: Callable[..., str]) -> None:
    assert refused("generate", "--base", place.base, "hi", prompt) == "Prompt 2 is empty."


@pytest.mark.parametrize(
    "flags",
    [{"test_rows": 0}, {"generate_rows": 0}, {"epochs": "nan"}, {"seed": 10**30}, {"max_length": 1}, {"batch_size": 0}],
)
def test_numbers_of_compare(flags: dict[str, object], compare: Callable[..., str]) -> None:
    assert flag(next(iter(flags))) in compare(**flags)


@pytest.mark.parametrize("budget", ["", "ten", "-5", "10x", "10mm", "inf", "nan", "1e3", "h", "0", "0m", "9" * 400])
def test_budget(budget: str, compare: Callable[..., str]) -> None:
    assert "90s" in compare(budget=budget)


def test_durations() -> None:
    given = {"90": 90, "90s": 90, "10m": 600, "1h30m": 5400, "1h": 3600, "0.5m": 30, " 2m10 ": 130}
    assert {text: duration(text) for text in given} == given
    for bad in ("1m1h", "1 m", "1d"):
        with pytest.raises(ValueError, match="not a duration: write 90s, 10m or 1h30m"):
            duration(bad)


@pytest.mark.parametrize("flags", [{"max_rows": 0}, {"max_length": 1}, {"max_new_tokens": 0}, {"generate_rows": -1}])
def test_numbers_of_eval(flags: dict[str, object], place: Place, refused: Callable[..., str]) -> None:
    given = [part for name, value in flags.items() for part in (flag(name), value)]
    assert flag(next(iter(flags))) in refused("eval", "--base", place.base, "--data", place.data, *given)


@pytest.mark.parametrize("flags", [{"max_length": 2}, {"max_new_tokens": 1000}])
def test_eval_without_room(flags: dict[str, object], place: Place, refused: Callable[..., str]) -> None:
    jsonl(Path("rows.jsonl"), [{"prompt": f"say {i}", "completion": f"words {i}"} for i in range(3)])
    given = [part for name, value in flags.items() for part in (flag(name), value)]
    said = refused("eval", "--base", place.base, "--data", "rows.jsonl", "--probe", place.probe, *given)
    assert "every one was dropped" in said


def test_eval_of_texts_that_are_not_generated(place: Place, refused: Callable[..., str]) -> None:
    jsonl(Path("rows.jsonl"), [{"prompt": f"say {i}", "completion": f"words {i}"} for i in range(3)])
    said = refused("eval", "--base", place.base, "--data", "rows.jsonl", "--probe", place.probe, "--generate-rows", 0)
    assert "--generate-rows 0 leaves nothing to score" in said


# The bank


def test_another_base(entry: Path, place: Place, refused: Callable[..., str]) -> None:
    for arguments in (["eval", entry, "--data", place.data, "--probe", place.probe], ["generate", entry, "hi"]):
        said = refused(*arguments, "--base", place.other)
        assert f"was made for {place.base}" in said and "another weights" in said


def test_corrupt_tensors(entry: Path, refused: Callable[..., str]) -> None:
    file = entry / "customization.safetensors"
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    assert "corrupt or changed" in refused("generate", entry, "hi")
    file.write_bytes(content[:50])
    assert "corrupt or changed" in refused("generate", entry, "hi")
    file.unlink()
    assert "is missing: the entry is damaged" in refused("generate", entry, "hi")


@pytest.mark.parametrize("how", ["missing", "shape", "unexpected", "no safetensors"])
def test_tensors_that_do_not_fit(how: str, entry: Path, refused: Callable[..., str]) -> None:
    """Even where the hash was made to fit."""
    file = entry / "customization.safetensors"
    tensors = load_file(file)
    first = min(tensors)
    if how == "missing":
        del tensors[first]
    elif how == "shape":
        tensors[first] = tensors[first][:1].clone()
    elif how == "unexpected":
        tensors["9.q.low_rank.A"] = tensors[first].clone()
    save_file(tensors, file)
    if how == "no safetensors":
        file.write_bytes(b"not one")
    record = json.loads((entry / "customization.json").read_text())
    record["tensors_sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
    (entry / "customization.json").write_text(json.dumps(record))
    said = refused("generate", entry, "hi")
    assert str(file) in said
    wanted = {"missing": "Missing tensors", "shape": "has shape", "unexpected": "Unexpected tensors"}
    assert wanted.get(how, "") in said


@pytest.mark.parametrize("change", [{"format": "x"}, {"surprise": 1}, {"template": {"style": "x"}}, None])
def test_damaged_record(change: dict[str, Any] | None, entry: Path, refused: Callable[..., str]) -> None:
    file = entry / "customization.json"
    file.write_text("[]" if change is None else json.dumps(json.loads(file.read_text()) | change))
    said = "is damaged: it does not hold a JSON object" if change is None else "or was written by another version"
    for arguments in (["generate", entry, "hi"], ["bank", "show", entry]):
        assert said in refused(*arguments)


def test_an_entry_of_nearly_that_name(entry: Path, place: Place, refused: Callable[..., str]) -> None:
    for arguments in (
        ["generate", "bank/mnie", "hi", "--base", place.base],
        ["generate", "bank/mnie", "hi"],
        ["eval", "bank/mnie", "--data", place.data],
        ["bank", "show", "bank/mnie"],
    ):
        assert "'mnie'. Did you mean mine?" in refused(*arguments)


def test_an_entry_without_a_prompt(entry: Path, refused: Callable[..., str]) -> None:
    assert "give at least one prompt after it" in refused("generate", entry)


def test_eval_as_it_was_not_made(entry: Path, place: Place, refused: Callable[..., str]) -> None:
    assert "Leave --template out" in refused("eval", entry, "--data", place.data, "--template", "{text} is {label}")
    assert "Leave --style out" in refused("eval", entry, "--data", place.data, "--style", "plain")


# Places to write to


def test_existing_out(entry: Path, train: Callable[..., str]) -> None:
    before = (entry / "customization.json").read_bytes()
    assert "bank/mine exists already. Choose another --out, or replace it with --overwrite." in train(out=entry)
    assert (entry / "customization.json").read_bytes() == before


@pytest.mark.parametrize("more", [[], ["--overwrite"]])
def test_out_that_is_no_entry(more: list[str], train: Callable[..., str], compare: Callable[..., str]) -> None:
    Path("folder").mkdir()
    Path("folder/precious").write_text("1")
    Path("file").write_text("1")
    for out in ("folder", "file"):
        assert f"{out} exists and is no bank entry, so it is not touched" in train(*more, out=out)
        for restart in ([], ["--restart"]):
            assert f"{out} exists and is no comparison, so it is not touched" in compare(*restart, out=out)
    for out in ("", ".", "folder/..", "..", "/", str(Path.home())):
        assert "so it is not touched. Name a file or folder of its own" in train(*more, out=out)
        assert "so it is not touched. Name a file or folder of its own" in compare(*more[:0], "--restart", out=out)
    assert Path("folder/precious").read_text() == "1"


def test_out_that_cannot_be(train: Callable[..., str], compare: Callable[..., str]) -> None:
    Path("file").write_text("1")
    assert "file is a file, not a folder" in train(out="file/x")
    assert "file is a file, not a folder" in compare(out="file/x")
    assert "File name too long" in train(out="x" * 300)


@pytest.mark.parametrize("out", [".training", "bank/.training", "bank/.mine"])
def test_hidden_out(out: str, train: Callable[..., str]) -> None:
    assert "names that begin with a dot are kept for unfinished work" in train(out=out)


def test_a_full_disk(train: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "bank/x")

    monkeypatch.setattr("tunescope.bank.save", full)
    said = train(method="zero-shot", max_steps=None)
    assert "The disk is full (bank/x). Free some space and run the command again." in said


def test_an_error_of_our_own_is_not_hidden(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (OSError("no path"), ValueError("a bug")):

        def fail(*_: object, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr("tunescope.commands.doctor.DoctorRequest.run", fail)
        with pytest.raises(type(error)):
            cli("doctor")


# Unfinished runs


@pytest.fixture
def unfinished(cli: Cli, place: Place, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ended]:
    """A run that was killed after some checkpoints; gives the command that goes on with it."""

    def command(*more: object, **flags: object) -> Ended:
        values = {"base": place.base, "data": place.data, "out": "bank/x", "max_steps": 4, "checkpoint_every": 1}
        values |= {"template": PATTERN, **flags}
        return cli("train", "lora", *(part for name, value in values.items() for part in (flag(name), value)), *more)

    def killed(_: object, metrics: Any) -> None:
        if metrics.step == 2:
            raise SystemExit(-9)

    with monkeypatch.context() as patched:
        patched.setattr("tunescope.cli.progress.TrainingProgress.__call__", killed)
        assert command().code == -9
    assert Path("bank/.training/x/checkpoint.safetensors").is_file()
    return command


def test_an_unfinished_run_goes_on(unfinished: Callable[..., Ended]) -> None:
    ended = unfinished("--json")
    assert ended.json["steps"] == 4
    assert {path.name for path in Path("bank/x").iterdir()} >= {"customization.json", "metrics.jsonl"}
    assert len(Path("bank/x/metrics.jsonl").read_text().splitlines()) == 4
    assert not Path("bank/.training").exists()


def test_other_settings_do_not_go_on_with_it(unfinished: Callable[..., Ended]) -> None:
    before = files()
    for flags in ({"lr": 0.5}, {"rank": 3}, {"seed": 9}, {"max_steps": 5}):
        ended = unfinished(**flags)
        assert ended.code == 2
        assert f"An unfinished run of bank/x had other settings ({next(iter(flags))})" in ended.err
        assert "--restart" in ended.err
    assert files() == before
    assert unfinished("--restart", lr=0.5).code == 0


def test_a_corrupt_checkpoint(unfinished: Callable[..., Ended]) -> None:
    file = Path("bank/.training/x/checkpoint.safetensors")
    file.write_bytes(file.read_bytes()[:100])
    ended = unfinished()
    assert ended.code == 2 and "checkpoint.safetensors is damaged" in ended.err and "--restart" in ended.err
    assert file.is_file()
    assert unfinished("--restart").code == 0


# Probes and bases

PROBES: dict[str, tuple[list[Any], str]] = {
    "other columns": ([{"foo": 1}], "a probe file needs the column text, or question, choices and answer; it has foo."),
    "no such answer": (
        [{"question": "a", "choices": ["x", "y"], "answer": "z"}],
        "answer 'z' is not among the choices",
    ),
    "no choices": ([{"question": "a", "choices": [], "answer": 0}], "answer 0 is not among the choices"),
    "no rows": ([], "holds no rows"),
}
WEAK_PROBES: dict[str, list[Any]] = {
    "empty text": [{"text": ""}],
    "one token": [{"text": "x"}],
    "a number": [{"text": 5}],
    "choices missing": [{"question": "a", "choices": None, "answer": 0}],
    "choices as text": [{"question": "a", "choices": "xy", "answer": 0}],
    "answer yes": [{"question": "a", "choices": ["x", "y"], "answer": True}],
}


@pytest.mark.parametrize("case", PROBES)
def test_probe(case: str, place: Place, refused: Callable[..., str], compare: Callable[..., str]) -> None:
    rows, said = PROBES[case]
    jsonl(Path("probe.jsonl"), rows)
    arguments = ["eval", "--base", place.base, "--data", place.data, "--template", PATTERN, "--probe", "probe.jsonl"]
    assert said in refused(*arguments)
    assert said in compare(probe="probe.jsonl")


@pytest.mark.parametrize("case", WEAK_PROBES)
def test_probe_that_measures_nothing(case: str, place: Place, refused: Callable[..., str]) -> None:
    jsonl(Path("probe.jsonl"), WEAK_PROBES[case])
    arguments = ["eval", "--base", place.base, "--data", place.data, "--template", PATTERN, "--probe", "probe.jsonl"]
    assert "probe.jsonl" in refused(*arguments, "--max-rows", 2, "--generate-rows", 1)


def test_no_probe_file(place: Place, refused: Callable[..., str]) -> None:
    said = refused("eval", "--base", place.base, "--data", place.data, "--template", PATTERN, "--probe", "no.jsonl")
    assert "There is no file no.jsonl." in said


@pytest.mark.parametrize(
    ("command", "file"),
    [
        ("pull", "config.json"),
        ("pull", "tokenizer.json"),
        ("pull", "model.safetensors"),
        ("pull", "unknown architecture"),
        ("look", "config.json"),
        ("look", "model.safetensors"),
        ("look", "tokenizer.json"),
        ("look", "unknown architecture"),
    ],
)
def test_damaged_base(command: str, file: str, place: Place, refused: Callable[..., str]) -> None:
    shutil.copytree(place.base, "base")
    config = json.loads(Path("base/config.json").read_text())
    if file == "unknown architecture":
        Path("base/config.json").write_text(json.dumps(config | {"model_type": "foo"}))
    else:
        (Path("base") / file).write_bytes((Path("base") / file).read_bytes()[:40])
    more = [place.data, "--template", PATTERN, "--base"] if command == "look" else []
    assert "base" in refused(command, *more, "base")


def test_a_revision_of_what_has_none(place: Place, refused: Callable[..., str]) -> None:
    assert "only the hub has revisions" in refused("pull", place.base, "--revision", "v2")


def test_files_that_are_no_base(refused: Callable[..., str]) -> None:
    Path("file").write_text("x")
    Path("model.gguf").write_bytes(b"x" * 100)
    Path("folder").mkdir()
    assert "is a file, but not a .gguf one" in refused("pull", "file")
    assert "it does not begin with the letters GGUF" in refused("pull", "model.gguf")
    assert "folder holds no config.json" in refused("pull", "folder")
