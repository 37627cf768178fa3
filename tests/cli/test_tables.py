"""Tables of tasks by command: trained, joined, split, and a task named wherever an entry is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.cli.conftest import ROWS, jsonl

if TYPE_CHECKING:
    from tests.cli.conftest import Ended, Place

Cli = Callable[..., "Ended"]
TEMPLATE = ("--template", "{text} topic: {label}")


@pytest.fixture
def table(cli: Cli, place: Place) -> str:
    """A table of two tasks, trained from one file."""
    rows = [{**row, "task": ("sky", "day")[i % 2]} for i, row in enumerate(ROWS + ROWS[::-1])]
    jsonl(Path("rows.jsonl"), rows)
    given = ("--base", place.base, "--data", "rows.jsonl", "--task-column", "task", *TEMPLATE, "--max-steps", 2)
    found = cli("train-tasks", "p-tuning", "--virtual-tokens", 3, *given, "--out", "bank/table", "--json").json
    assert found["path"] == "bank/table" and set(found["tasks"]) == {"sky", "day"}
    return "bank/table"


def test_a_task_stands_wherever_an_entry_does(cli: Cli, place: Place, table: str) -> None:
    listed = cli("bank", "list", "bank", "--json").json
    assert [row["name"] for row in listed] == ["table:day", "table:sky"]
    assert cli("bank", "verify", f"{table}:sky", "--json").json["verified"] is True
    assert cli("bank", "show", f"{table}:sky", "--json").json["training"]["tasks"] == ["sky", "day"]
    alone = cli("generate", f"{table}:sky", "the sun of day 3 topic:", "--json").json["text"]
    asked = jsonl(
        Path("asked.jsonl"),
        [{"prompt": "the sun of day 3 topic:", "customization": name} for name in ("table:sky", "table:night")],
    )
    batch = cli("generate", "--batch", asked, "--bank", "bank", "--json")
    answers = [json.loads(line) for line in batch.out.splitlines()]
    assert batch.code == 2 and answers[0]["text"] == alone and "table:night" in answers[1]["error"]
    card = cli("eval", f"{table}:sky", "--data", place.data, "--max-rows", 4, "--generate-rows", 0, "--json").json
    assert card["accuracy"] is not None
    assert cli("bank", "show", f"{table}:sky", "--json").json["card"]["accuracy"] == card["accuracy"]
    assert cli("bank", "show", f"{table}:day", "--json").json["card"] is None
    assert cli("bank", "export", f"{table}:sky", "--to", "peft", "--out", "peft").code == 0
    trained = cli("train", "lora", "--rank", 2, "--base", place.base, "--from", f"{table}:sky", "--data", place.data,
                  "--max-steps", 1, "--out", "bank/more", "--json")  # fmt: skip
    assert trained.code == 0


@pytest.mark.parametrize(
    "typed", ["generate {table}:skies hello", "bank show {table}:skies", "bank verify {table}:skies"]
)
def test_an_unknown_task_names_those_there_are(typed: str, cli: Cli, table: str) -> None:
    refused = cli(*typed.format(table=table).split())
    assert refused.code == 2 and "skies" in refused.err and "Known: day, sky." in refused.err


def test_join_and_split(cli: Cli, place: Place, table: str) -> None:
    given = ("--base", place.base, "--data", place.data, *TEMPLATE, "--max-steps", 1)
    assert cli("train", "ia3", *given, "--out", "bank/new").code == 0
    joined = cli("bank", "join", table, "bank/new", "--out", "bank/three", "--json").json
    assert joined["tasks"] == ["day", "sky", "new"]
    split = cli("bank", "split", "bank/three", "--out", "apart", "--json").json
    assert split["entries"] == ["apart/day", "apart/new", "apart/sky"]
    again = cli("bank", "split", "bank/three", "--out", "apart")
    assert again.code == 2 and "exists already" in again.err
    assert cli("bank", "join", table, "bank/nothing", "--out", "bank/four").code == 2
    assert not Path("bank/four").exists()


@pytest.mark.parametrize(
    ("method", "given", "said"),
    [
        ("p-tuning", "", "Name the tasks by --task NAME=DATA"),
        ("p-tuning", "--data {data}", "Name the tasks by --task NAME=DATA"),
        ("p-tuning", "--task a={data} --data {data} --task-column b", "Name the tasks by --task NAME=DATA"),
        ("p-tuning", "--task a", "--task a: expected a name and what it is for, such as spam=sms-spam"),
        ("p-tuning", "--task a={data} --task b={data} --task-template c=x", "Unknown task (--task-template) 'c'"),
        ("p-tuning", "--task a={data}", "for several tasks, and 1 is given"),
        ("p-tuning", "--task a={data} --task a={data}", "--task a is given twice"),
        ("p-tuning", "--task a:b={data} --task c={data}", "cannot be called 'a:b'"),
        ("p-tuning", "--task a={data} --task b=none.jsonl", "There is no file none.jsonl"),
        ("p-tuning", "--data {data} --task-column kind", "has no column 'kind'"),
        ("full", "--task a={data} --task b={data}", "full moves the base's own weights"),
        ("zero-shot", "--task a={data} --task b={data}", "zero-shot trains nothing"),
    ],
)
def test_bad_input(method: str, given: str, said: str, cli: Cli, place: Place) -> None:
    typed = given.format(data=place.data).split()
    steps = [] if method == "zero-shot" else ["--max-steps", 1]
    refused = cli("train-tasks", method, "--base", place.base, *typed, *TEMPLATE, *steps, "--out", "bank/table")
    assert refused.code == 2 and said in refused.err and "Traceback" not in refused.err
    assert not Path("bank/table").exists()


def test_a_finished_recipe_with_tasks_is_finished_when_it_is_run_again(cli: Cli, place: Place) -> None:
    Path("rows.jsonl").write_bytes(place.data.read_bytes())
    Path("tasks.yaml").write_text(
        f"""
out: runs/tasks
base: {place.base}
stages:
  table:
    command: train-tasks
    method: p-tuning
    virtual_tokens: 2
    task: [sky=rows.jsonl, day=rows.jsonl]
    template: "{{text}} topic: {{label}}"
    max_steps: 1
  measured: {{command: bank verify, entry: "${{table}}:sky"}}
""",
        encoding="utf-8",
    )
    first = cli("run", "tasks.yaml", "--json")
    assert first.code == 0, first.err
    again = cli("run", "tasks.yaml", "--dry-run", "--json").json
    assert [stage["state"] for stage in again["stages"]] == ["finished", "finished"], again
    jsonl(Path("rows.jsonl"), [{**row, "text": row["text"] + "!"} for row in ROWS])
    changed = cli("run", "tasks.yaml")
    assert changed.code == 2 and "rows.jsonl" in changed.err


def test_a_task_may_have_a_template_of_its_own(cli: Cli, place: Place) -> None:
    given = ("--task", f"sky={place.data}", "--task", f"day={place.data}", *TEMPLATE, "--max-steps", 1)
    own = ("--task-template", r"sky={text}\nsky: {label}")
    ended = cli("train-tasks", "ia3", "--base", place.base, *given, *own, "--out", "bank/table", "--json")
    assert ended.code == 0, ended.err
    patterns = {
        name: cli("bank", "show", f"bank/table:{name}", "--json").json["template"]["pattern"] for name in ("sky", "day")
    }
    assert patterns == {"sky": "{text}\nsky: {label}", "day": TEMPLATE[1]}
