"""Files as people have them: every command reads the same, and says how."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.cli.conftest import Ended, Place

Cli = Callable[..., Ended]

TALK = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
PARTS = [turn | {"content": [{"type": "text", "text": turn["content"]}]} for turn in TALK]
TURNS = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yo"}]
PATTERN = "{text} label: {label}"

# The file, its template, what the first row's prompt ends in, what is learned of it, and the note.
FORMATS: dict[str, tuple[str, str | None, str, str, str | None]] = {
    "sharegpt.json": (json.dumps([{"conversations": TURNS}] * 2), None, "hi", "yo", "read as ShareGPT conversations."),
    "alpaca.json": (
        json.dumps([{"instruction": "Add.", "input": "1 2", "output": "3"}] * 2),
        None, "Add.\n1 2", "3", "read as Alpaca's rows",
    ),
    "nested.json": (
        json.dumps({"version": "1.0", "data": [{"prompt": "a", "completion": "b"}]}, indent=2),
        None, "a", "b", "read the rows under 'data'; not read: version.",
    ),
    "parts.jsonl": (json.dumps({"messages": PARTS}), None, "hi", "yo", None),
    "strmsg.jsonl": (json.dumps({"messages": json.dumps(TALK)}), None, "hi", "yo", "read from JSON text."),
    "keys.jsonl": (
        json.dumps({"messages": [turn | {"mood": "well"} for turn in TALK]}),
        None, "hi", "yo", "messages: not read: mood.",
    ),
    "semi.csv": (
        'text;label\n"good; really";pos\nbad;neg\n', PATTERN, "good; really label:", "pos", "delimiter is a semicolon.",
    ),
    "semi2.csv": (
        "text;label\ngood, nice;pos\nbad, sad;neg\n", PATTERN, "good, nice label:", "pos", "delimiter is a semicolon.",
    ),
    "spaces.csv": (
        "Subject,Message Body,Category\nparcel,it never came,complaint\nthanks,great work,praise\n",
        "{Subject}: {Message Body} category: {Category}", "parcel: it never came category:", "complaint", None,
    ),
    "break.csv": (
        "text,label\na,pos\nb,neg\n", r"{text}\n\tlabel: {label}", "a\n\tlabel:", "pos", r"In --template \n is read as",
    ),
    "whole.csv": ("text,label\na,1.0\nb,\n", PATTERN, "a label:", "1", "label: whole numbers beside missing values"),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
def test_look_and_train_read_and_say_the_same(name: str, cli: Cli, place: Place) -> None:
    content, pattern, prompt, learned, note = FORMATS[name]
    Path(name).write_text(content, encoding="utf-8")
    given = ["--base", place.plain, "--skip-bad", 1, *(["--template", pattern] if pattern else [])]
    looked = cli("look", name, *given, "--json")
    pieces = dict(looked.json["examples"][0])
    assert pieces["prompt"] == prompt
    assert pieces["trained"].strip() == learned
    trained = cli("train", "zero-shot", "--data", name, *given, "--out", "bank/x")
    assert trained.code == 0
    for ended in (looked, trained):
        assert (note is None and "not read" not in ended.err) or (note is not None and note in ended.err)
    template = cli("bank", "show", "bank/x", "--json").json["template"]
    assert template["pattern"] == (pattern and pattern.replace(r"\n", "\n").replace(r"\t", "\t"))


@pytest.mark.parametrize("command", ["look", "train"])
@pytest.mark.parametrize("row", [{"prompt": "a"}, {"text": "a", "label": "b"}])
def test_look_and_train_refuse_the_same(command: str, row: dict[str, str], cli: Cli, place: Place) -> None:
    Path("rows.jsonl").write_text(json.dumps(row), encoding="utf-8")
    given = {"look": ["look", "rows.jsonl"], "train": ["train", "lora", "--data", "rows.jsonl", "--out", "bank/x"]}
    ended = cli(*given[command], "--base", place.base)
    assert ended.code == 2
    assert (
        f"rows.jsonl: the columns are {', '.join(sorted(row))}; expected prompt and completion, messages, "
        "conversations (ShareGPT), or instruction and output (Alpaca)."
    ) in " ".join(ended.err.split())


def test_every_command_says_how_it_read(cli: Cli, place: Place) -> None:
    rows = "".join(f"{text};{label}\n" for text, label in (("a", "x"), ("b", "y")) * 8)
    Path("rows.csv").write_text("text;label\n" + rows, encoding="utf-8")
    data = ["--data", "rows.csv", "--template", r"{text}\n{label}", "--base", place.base, "--probe", place.probe]
    short = ["--generate-rows", 1, "--max-new-tokens", 2]
    for arguments in (
        ["eval", *data, *short],
        ["compare", *data, *short, "--out", "run", "--methods", "zero-shot", "--budget", "30s"],
    ):
        ended = cli(*arguments)
        assert ended.code == 0, ended.err
        assert "rows.csv: the delimiter is a semicolon." in ended.err
        assert r"In --template \n is read as a line break" in ended.err
