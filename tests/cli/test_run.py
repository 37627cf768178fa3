"""``run``: recipes of stages, each run once, checked whole before anything runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.cli.conftest import PATTERN, ROWS, Ended, Place, jsonl

import tunescope as ts
from tunescope.commands.command import Command
from tunescope.commands.train import TrainRequest

Cli = Callable[..., Ended]
Recipe = Callable[..., dict[str, Any]]


@pytest.fixture
def recipe(cli: Cli, place: Place) -> Recipe:
    """Four stages that use each other, written to ``recipe.yaml``; ``changes`` are made to the stages by name."""
    jsonl(Path("rows.jsonl"), ROWS[:8])

    def write(**changes: dict[str, Any] | None) -> dict[str, Any]:
        stages: dict[str, Any] = {
            "sft": {"command": "train", "method": "lora", "rank": 2, "max_steps": 2, "targets": ["q", "v"]},
            "more": {"command": "train", "method": "ia3", "from": "${sft}", "max-steps": 1},
            "test": {
                "command": "eval", "entry": "${more}", "probe": str(place.probe), "generate_rows": 1,
                "max_new_tokens": 2,
            },
            "answers": {"command": "predict", "entry": "${sft}"},
        }  # fmt: skip
        for name, change in changes.items():
            if change is None:
                del stages[name]
            else:
                stages[name] = {k: v for k, v in (stages.get(name, {}) | change).items() if v is not None}
        whole = {"out": "runs/a", "base": str(place.base), "data": "rows.jsonl", "dtype": "float32"}
        whole |= {"template": PATTERN, "stages": stages}
        Path("recipe.yaml").write_text(yaml.safe_dump(whole, sort_keys=False), encoding="utf-8")
        return whole

    write()
    return write


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The commands that ran, by what they write or work on."""
    seen: list[str] = []
    for name in ("train.TrainRequest", "eval.EvalRequest", "predict.PredictRequest"):
        kind = getattr(__import__(f"tunescope.commands.{name.split('.')[0]}", fromlist=["x"]), name.split(".")[1])
        inner = kind.run

        def run(self: Command, report: Any = None, inner: Any = inner) -> Any:
            seen.append(Path(getattr(self, "out", None) or "eval").name)
            return inner(self, report)

        monkeypatch.setattr(kind, "run", run)
    return seen


def states(ended: Ended) -> dict[str, str]:
    return {stage["name"]: stage["state"] for stage in ended.json["stages"]}


def test_stages_use_what_earlier_ones_made_and_run_once(recipe: Recipe, ran: list[str], cli: Cli) -> None:
    planned = cli("run", "recipe.yaml", "--dry-run", "--json")
    assert states(planned) == dict.fromkeys(("sft", "more", "test", "answers"), "to run") and not Path("runs").exists()
    said = cli("run", "recipe.yaml", "--json").json
    assert ran == ["sft", "more", "eval", "answers.csv"]
    assert [(stage["name"], stage["path"]) for stage in said["stages"]] == [
        ("sft", "runs/a/sft"), ("more", "runs/a/more"), ("test", "runs/a/more"), ("answers", "runs/a/answers.csv"),
    ]  # fmt: skip
    assert all(stage["seconds"] >= 0 and stage["command"] for stage in said["stages"])
    assert said["stages"][2]["accuracy"] is not None and said["stages"][0]["steps"] == 2
    record = ts.read_record(Path("runs/a/more"))
    assert record.start is not None and record.start.method == "lora" and record.start.method_settings["rank"] == 2
    again = cli("run", "recipe.yaml", "--json")
    assert len(ran) == 4 and set(states(again).values()) == {"finished"}
    assert again.json["stages"][2]["accuracy"] == said["stages"][2]["accuracy"]
    people = cli("run", "recipe.yaml")
    assert "finished" in people.out and "[4/4] answers: predict" in people.err


def test_a_stage_runs_again_with_those_that_use_it(recipe: Recipe, ran: list[str], cli: Cli) -> None:
    assert cli("run", "recipe.yaml").code == 0
    del ran[:]
    assert cli("run", "recipe.yaml", "--restart", "more", "--json").code == 0
    assert ran == ["more", "eval"]
    del ran[:]
    assert cli("run", "recipe.yaml", "--restart", "all").code == 0
    assert ran == ["sft", "more", "eval", "answers.csv"]
    wrong = cli("run", "recipe.yaml", "--restart", "mor")
    assert wrong.code == 2 and "Did you mean more" in wrong.err


@pytest.mark.parametrize("change", ["a setting", "a default", "the rows", "an earlier stage's folder"])
def test_what_was_finished_otherwise_is_said_before_anything_runs(
    change: str, recipe: Recipe, ran: list[str], cli: Cli
) -> None:
    assert cli("run", "recipe.yaml").code == 0
    del ran[:]
    if change == "an earlier stage's folder":
        recipe(sft={"out": "runs/a/other"})
    elif change == "the rows":
        jsonl(Path("rows.jsonl"), ROWS[:7])
    else:
        recipe(more={"max-steps": 2} if change == "a setting" else {"lr": 0.5})
    ended = cli("run", "recipe.yaml")
    assert ended.code == 2 and "finished with other settings" in ended.err and "--restart" in ended.err
    names = {"a setting": "max_steps", "a default": "lr", "the rows": "data (its content)"}
    assert names.get(change, "out") in ended.err and not ran
    plan = states(cli("run", "recipe.yaml", "--dry-run", "--json"))
    assert any("finished with other settings" in state for state in plan.values())


def test_a_default_that_is_written_out_changes_nothing(recipe: Recipe, ran: list[str], cli: Cli) -> None:
    assert cli("run", "recipe.yaml").code == 0
    recipe(sft={"alpha": 16, "batch_size": 8})
    assert set(states(cli("run", "recipe.yaml", "--json")).values()) == {"finished"} and len(ran) == 4


def test_a_weighted_judge_may_be_what_a_stage_made(recipe: Recipe, cli: Cli) -> None:
    judges = ["0.5*${more}", "regex:a, b"]
    recipe(samples={"command": "pairs", "prompts": "rows.jsonl", "judge": judges})
    last = cli("run", "recipe.yaml", "--dry-run", "--json").json["stages"][-1]
    assert last["settings"]["judge"] == ["0.5*runs/a/more", "regex:a, b"]


def test_what_is_gone_is_made_again_and_what_used_it_too(recipe: Recipe, ran: list[str], cli: Cli) -> None:
    import shutil

    assert cli("run", "recipe.yaml").code == 0
    del ran[:]
    shutil.rmtree("runs/a/more")
    assert cli("run", "recipe.yaml").code == 0
    assert ran == ["more", "eval"]


def test_a_killed_stage_goes_on_in_the_middle(
    recipe: Recipe, cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    recipe(sft={"max_steps": 4, "checkpoint_every": 1}, more=None, test=None)
    assert cli("run", "recipe.yaml").code == 0
    whole = Path("runs/a/sft/metrics.jsonl").read_text()
    recipe(sft={"max_steps": 4, "checkpoint_every": 1, "out": "runs/b/sft"}, more=None, test=None)
    text = Path("recipe.yaml").read_text().replace("out: runs/a\n", "out: runs/b\n")
    Path("recipe.yaml").write_text(text)

    def killed(_: object, metrics: Any) -> None:
        if metrics.step == 3:
            raise SystemExit(-9)

    with monkeypatch.context() as patched:
        patched.setattr("tunescope.cli.progress.TrainingProgress.__call__", killed)
        assert cli("run", "recipe.yaml").code == -9
    assert states(cli("run", "recipe.yaml", "--dry-run", "--json"))["sft"] == "to go on"
    first: list[int] = []
    monkeypatch.setattr("tunescope.cli.progress.TrainingProgress.__call__", lambda _, m: first.append(m.step))
    assert cli("run", "recipe.yaml").code == 0
    assert first == [4]  # the third step's checkpoint was written before its callback
    losses = [[json.loads(line)["loss"] for line in text.splitlines()] for text in
              (whole, Path("runs/b/sft/metrics.jsonl").read_text())]  # fmt: skip
    assert losses[0] == losses[1]


def test_a_failing_stage_is_named_and_earlier_ones_are_kept(recipe: Recipe, ran: list[str], cli: Cli) -> None:
    jsonl(Path("few.jsonl"), [{"text": "a", "label": "never seen"}])
    recipe(test={"data": "few.jsonl"})
    ended = cli("run", "recipe.yaml")
    assert ended.code == 2 and "Stage test: " in ended.err and "never seen" in ended.err
    recipe()
    assert cli("run", "recipe.yaml").code == 0
    assert ran == ["sft", "more", "eval", "eval", "answers.csv"]


def test_an_entry_that_was_there_before_is_not_replaced(recipe: Recipe, cli: Cli, place: Place) -> None:
    base = ("--base", place.base, "--data", place.data, "--template", PATTERN)
    assert cli("train", "zero-shot", *base, "--out", "runs/a/sft").code == 0
    for _ in range(2):
        ended = cli("run", "recipe.yaml")
        assert ended.code == 2 and "runs/a/sft exists already" in ended.err
    assert ts.read_record(Path("runs/a/sft")).method == "zero-shot"


def test_a_file_may_be_one_command(cli: Cli, place: Place, recipe: Recipe) -> None:
    del recipe
    one = {"command": "train", "method": "zero-shot", "base": str(place.base), "data": "rows.jsonl", "out": "bank/x"}
    Path("one.yaml").write_text(yaml.safe_dump({**one, "template": PATTERN}))
    assert states(cli("run", "one.yaml", "--dry-run", "--json")) == {"train": "to run"}
    assert cli("run", "one.yaml", "--json").json["path"] == "bank/x"
    assert "exists already" in cli("run", "one.yaml").err
    assert "without stages" in cli("run", "one.yaml", "--restart", "all").err


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "unknown command": ({"sft": {"command": "trian"}}, "stage sft: Unknown command 'trian'. Did you mean train"),
    "no command": ({"sft": {"command": None}}, "stage sft: name its command"),
    "unknown method": ({"sft": {"method": "lroa"}}, "stage sft: Unknown method 'lroa'. Did you mean lora?"),
    "no name": ({"sft": {"method": 3}}, "stage sft: method: expected a name, got 3"),
    "no method": ({"sft": {"method": None}}, "stage sft: method: is missing"),
    "unknown setting": ({"sft": {"rnak": 3}}, "stage sft: Unknown setting of TrainRequest 'rnak'. Did you mean rank"),
    "bad value": ({"sft": {"rank": "many"}}, "stage sft: rank: Input should be a valid integer"),
    "of another method": ({"more": {"rank": 2}}, "stage more: rank: belongs to method lora, and this is ia3"),
    "of another objective": ({"sft": {"beta": 2}}, "stage sft: beta: belongs to objective dpo, and this is sft"),
    "missing": ({"test": {"entry": None}, "answers": {"entry": None}}, "stage answers: entry: is missing"),
    "unknown stage": ({"more": {"from": "${sfft}"}}, "stage more: Unknown stage 'sfft'. Did you mean sft?"),
    "later stage": ({"sft": {"from": "${more}"}}, "stage sft: uses more, which does not come before it"),
    "itself": ({"more": {"from": "${more}"}}, "stage more: uses more, which does not come before it"),
    "same out": ({"more": {"out": "runs/a/sft"}}, "stage more: writes runs/a/sft, as sft does"),
    "recipe in a recipe": ({"sft": {"command": "run"}}, "a recipe runs no recipe"),
    "bad stage name": ({"a.b": {"command": "doctor"}}, "'a.b' is no name of a stage"),
    "uses what leaves nothing": (
        {"answers": None, "who": {"command": "doctor"}, "z": {"command": "eval", "entry": "${who}"}},
        "stage z: uses who, which leaves no entry",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_recipes_stop_before_anything_runs(name: str, recipe: Recipe, ran: list[str], cli: Cli) -> None:
    changes, words = BAD[name]
    recipe(**changes)
    ended = cli("run", "recipe.yaml")
    assert (ended.code, ended.out, ran) == (2, "", []) and not Path("runs").exists()
    assert words in " ".join(ended.err.split()) and "recipe.yaml" in ended.err and "Traceback" not in ended.err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "expected keys with values"),
        ("- a\n", "expected keys with values"),
        ("command: train\nout: [\n", "line 3: is not valid YAML"),
        ("out: a\nout: b\n", "line 2: is not valid YAML: the key 'out' is given twice"),
        ("a: !!python/object:os.system {}\n", "is not valid YAML"),
        ("stages:\n  a: {command: doctor}\n", "name the folder that its stages write to"),
        ("out: a\nstages: {}\n", "stages: expected keys with values"),
        ("out: a\nbse: x\nstages:\n  a: {command: doctor}\n", "bse is a setting of no stage"),
    ],
)
def test_files_that_are_no_recipe(text: str, words: str, cli: Cli) -> None:
    Path("r.yaml").write_text(text)
    ended = cli("run", "r.yaml")
    assert ended.code == 2 and words in ended.err, ended.err
    assert "There is no file none.yaml" in cli("run", "none.yaml").err
    assert "cannot be read" in cli("run", ".").err


def test_a_damaged_ledger_is_not_replaced(recipe: Recipe, cli: Cli) -> None:
    Path("runs/a").mkdir(parents=True)
    Path("runs/a/run.json").write_text("[1]")
    ended = cli("run", "recipe.yaml")
    assert ended.code == 2 and "run.json is damaged" in ended.err and Path("runs/a/run.json").read_text() == "[1]"


def test_the_same_settings_from_python(place: Place, tmp_path: Path) -> None:
    """A command line's flags, a recipe's keys and Python's fields make equal objects."""
    common = {"base": str(place.base), "data": str(place.data), "out": tmp_path / "x", "template": PATTERN}
    typed = TrainRequest.flat({**common, "method": "lora", "rank": "3", "max_steps": "1", "targets": ("q",)})
    made = ts.TrainRequest(
        **common, method=ts.LoRA(rank=3, targets=("q",)), settings=ts.TrainSettings(max_steps=1)
    )  # fmt: skip
    assert typed == made
    result = made.run()
    assert result.path == tmp_path / "x" and result.values["steps"] == 1
    found = ts.EvalRequest(entry=result.path, data=str(place.data), probe=place.probe, generate_rows=1).run()
    assert found.values["rows"] == len(ROWS)


def test_three_stages_end_with_what_they_gained(cli: Cli, place: Place) -> None:
    """The shape of examples/rlhf.yaml on a tiny base: one object, whose last stage says what a judge gained."""
    jsonl(Path("prompts.jsonl"), [{"prompt": f"say {i}", "completion": "yes"} for i in range(6)])
    jsonl(Path("pairs.jsonl"), [{"prompt": f"say {i}", "chosen": "aaa", "rejected": "zzz"} for i in range(6)])
    train = {"command": "train", "method": "lora", "rank": 2, "data": "prompts.jsonl", "max_steps": 1}
    policy = {"objective": "ppo", "from": "${sft}", "reward": "${reward}", "rounds": 2, "prompts": 2, "n": 2,
              "batch_size": 2, "max_steps": None, "epochs": 1}  # fmt: skip
    stages: dict[str, Any] = {
        "sft": train,
        "reward": train | {"objective": "reward", "from": "${sft}", "data": "pairs.jsonl"},
        "ppo": {k: v for k, v in (train | policy).items() if v is not None},
        "judge": {
            "command": "eval", "entry": "${ppo}", "against": "${sft}", "data": "prompts.jsonl", "judge": "sentiment",
            "n": 2,
        },
    }  # fmt: skip
    whole = {"out": "runs/r", "base": str(place.base), "dtype": "float32", "max_new_tokens": 4, "stages": stages}
    Path("rlhf.yaml").write_text(yaml.safe_dump(whole, sort_keys=False), encoding="utf-8")
    said = cli("run", "rlhf.yaml", "--json").json["stages"]
    assert [stage["name"] for stage in said] == list(stages)
    assert all(stage["path"] and stage["seconds"] >= 0 for stage in said)
    last = said[-1]
    assert last["judge_gain_low"] <= last["judge_after"] - last["judge_before"] <= last["judge_gain_high"]
    assert abs(last["kl"]) < 1e3 and (Path("runs/r/ppo") / "samples.html").is_file()


def test_a_stage_runs_again_where_a_function_or_a_mixture_s_data_changed(cli: Cli, place: Place) -> None:
    rows = [{"text": f"t{i}", "label": "x"} for i in range(4)]
    jsonl(Path("a.jsonl"), rows)
    Path("judged.py").write_text("def one(prompt, completion):\n    return 1\n")
    Path("mix.yaml").write_text("tasks: {a: {data: a.jsonl, templates: ['{text} {label}']}}\n")
    Path("r.yaml").write_text(
        f"out: runs\nstages:\n  mixed: {{command: mix, mixture: mix.yaml}}\n"
        f"  labelled: {{command: annotate, base: '{place.base}', data: '${{mixed}}', by: ['a=judged:one']}}\n"
    )
    assert cli("run", "r.yaml").code == 0
    assert [stage["state"] for stage in cli("run", "r.yaml", "--dry-run", "--json").json["stages"]] == ["finished"] * 2
    Path("judged.py").write_text("def one(prompt, completion):\n    return 2\n")
    again = cli("run", "r.yaml", "--dry-run")
    assert "other settings (judged.py (its content))" in again.out
    Path("judged.py").write_text("def one(prompt, completion):\n    return 1\n")
    jsonl(Path("a.jsonl"), rows[:2])
    again = cli("run", "r.yaml", "--dry-run")
    assert "other settings (a.jsonl (its content))" in again.out
