"""``tunescope plan``: what it says, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.cli.conftest import PATTERN, Ended, Place, cli, jsonl, place, trained  # noqa: F401

import tunescope as ts
from tunescope.planning import GPUS, gpu, this_machine
from tunescope.planning.counting import Counting, Work

Cli = Callable[..., Ended]
ROW = {"method", "objective", "trainable_parameters", "peak_memory_mb", "seconds", "steps", "fits", "parts"}
LLAMA_70B = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 8192, "intermediate_size": 28672,
    "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 128256,
    "max_position_embeddings": 8192, "torch_dtype": "bfloat16",
}  # fmt: skip


def test_bytes_are_counted_while_they_live() -> None:
    weight = torch.empty(8, 8, device="meta")
    with (counting := Counting([weight])):
        first = weight @ weight
        view = first.t()
        assert counting.live == 8 * 8 * 4
        second = first + 1
        assert counting.live == 2 * 8 * 8 * 4
        del first, second
        assert counting.live == 8 * 8 * 4  # the view keeps what it looks at
        del view
        assert counting.live == 0
    assert counting.take_highest() == 2 * 8 * 8 * 4
    assert counting.work == Work(2 * 8**3, 3 * 8 * 8 * 4, 2 * 8 * 8 * 4, 2)


def test_what_no_weight_reaches_has_its_values() -> None:
    weight = torch.empty(6, 4, device="meta")
    with Counting():
        places = torch.arange(6, device="meta")
        chosen = places % 2 == 0
        assert chosen.tolist() == [True, False, True, False, True, False]
        assert weight[chosen].shape == (3, 4)


def test_rows_say_what_each_run_takes(cli: Cli, place: Place) -> None:  # noqa: F811
    what = ("--methods", "lora,full", "--objectives", "sft,ppo,rloo")
    found = cli("plan", "--base", place.base, "--data", place.data, "--template", PATTERN, *what, "--json").json
    rows = {(row["method"], row["objective"]): row for row in found["rows"]}
    assert ("lora", "sft") in rows and ("full", "ppo") in rows
    for row in rows.values():
        assert set(row) >= ROW
        assert row["peak_memory_mb"] == pytest.approx(sum(row["parts"].values()), abs=0.5)
        assert row["fits"] and row["seconds"] > 0
    assert rows["lora", "sft"]["steps"] == 15  # three passes over forty rows by eight
    assert rows["full", "sft"]["parts"]["optimizer"] > rows["lora", "sft"]["parts"]["optimizer"]


def test_trained_numbers_are_those_of_training(cli: Cli, place: Place, trained: Any) -> None:  # noqa: F811
    found = cli(
        "plan", "--base", place.base, "--data", place.data, "--template", PATTERN, "--methods", "lora,full",
        "--objectives", "sft", "--dtype", "float32", "--json",
    ).json  # fmt: skip
    for row in found["rows"]:
        base = ts.load_base(str(place.base), dtype="float32")
        entry = ts.load(place.bank / row["method"], base)
        assert row["trainable_parameters"] == entry.trainable_parameters
    assert found["parameters"] == base.parameters


def test_pairs_are_planned_for_what_learns_from_pairs(cli: Cli, place: Place, tmp_path: Path) -> None:  # noqa: F811
    rows = [{"prompt": f"say {i}", "chosen": "yes please", "rejected": "no"} for i in range(9)]
    pairs = jsonl(tmp_path / "p.jsonl", rows)
    found = cli("plan", "--base", place.base, "--data", pairs, "--methods", "lora", "--json").json
    assert {row["objective"] for row in found["rows"]} == {"dpo", "reward", "ppo", "rloo", "grpo"}
    refused = cli("plan", "--base", place.base, "--data", pairs, "--objectives", "sft")
    assert refused.code == 2
    assert "sft cannot learn from" in refused.err and "comparisons" in refused.err


def test_a_70b_model_is_planned_from_its_configuration(cli: Cli, tmp_path: Path) -> None:  # noqa: F811
    (tmp_path / "big").mkdir()
    (tmp_path / "big" / "config.json").write_text(json.dumps(LLAMA_70B))
    asked = ("plan", "--base", tmp_path / "big", "--gpu", "h100", "--length", 1024, "--methods", "lora,full")
    found = cli(*asked, "--objectives", "sft,dpo", "--json").json
    assert found["parameters"] == 70_553_706_496
    assert found["weights_mb"] == pytest.approx(141_107, rel=1e-3)
    full = next(row for row in found["rows"] if row["method"] == "full")
    assert not full["fits"] and "more than any one GPU" in full["remedy"]
    # 2 bytes a copy, 4 of masters and 8 of moments.
    assert full["parts"]["copy"] + full["parts"]["optimizer"] == pytest.approx(14 * 70_553.7, rel=1e-3)
    no_words = cli("plan", "--base", tmp_path / "big", "--data", "sms-spam", "--gpu", "h100")
    assert no_words.code == 2 and "--length" in no_words.err


def test_what_does_not_fit_is_given_the_least_change(cli: Cli, place: Place) -> None:  # noqa: F811
    what = ("--length", 256, "--objectives", "sft", "--methods", "lora", "--dtype", "float32")
    asked = ("plan", "--base", place.base, *what)
    whole = cli(*asked, "--json").json["rows"][0]
    parts = whole["parts"]
    room = (whole["peak_memory_mb"] - 0.4 * parts["activations"] + 1) / 1e3
    small = cli(*asked, "--memory", room, "--json").json["rows"][0]
    assert not small["fits"]
    assert small["options"] == "--accumulate 2"
    shown = cli(*asked, "--memory", room)
    assert "--accumulate 2" in shown.out and "tunescope train METHOD" in shown.out
    assert cli(*asked, "--memory", room, "--accumulate", 2, "--json").json["rows"][0]["fits"]


def test_measured_steps_set_seconds_right(cli: Cli, place: Place) -> None:  # noqa: F811
    asked = ("plan", "--base", place.base, "--data", place.data, "--template", PATTERN, "--methods", "lora", "--json")
    found = cli(*asked, "--objectives", "sft", "--measure").json
    assert found["calibration"] > 0 and found["calibration"] != 1
    assert found["rows"][0]["seconds"] > 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "--data, or --length"),
        (("--length", 64, "--gpu", "h10"), "h100"),
        (("--length", 64, "--gpu", "h100", "--measure"), "leave one out"),
        (("--length", 64, "--gpu", "h100", "--device", "cpu"), "leave one out"),
        (("--length", 100000), "context"),
        (("--length", -1), "length"),
        (("--length", 64, "--memory", -2), "memory"),
        (("--length", 64, "--methods", "few-shot"), "trains nothing"),
        (("--length", 64, "--methods", "lorra"), "lora"),
        (("--length", 64, "--objectives", "steerlm2"), "rloo"),
        (("--length", 64, "--objectives", "ppo", "--measure"), "sft"),
        (("--length", 64, "--n", 1), "n"),
    ],
)
def test_bad_input_is_refused(cli: Cli, place: Place, options: tuple[Any, ...], said: str) -> None:  # noqa: F811
    ended = cli("plan", "--base", place.base, *options)
    assert ended.code == 2
    assert said in ended.err
    assert "Traceback" not in ended.err


def test_a_hub_id_without_its_configuration_says_so(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    ended = cli("plan", "--base", "someone/nothing-there", "--length", 64)
    assert ended.code == 2
    assert "someone/nothing-there" in ended.err


def test_machines_compute_as_fast_as_they_say() -> None:
    h100 = gpu("H100")
    assert h100.dtype == torch.bfloat16 and gpu("t4").dtype == torch.float32
    work = Work(flops=h100.flops[torch.bfloat16])
    assert h100.seconds(work, torch.bfloat16) == pytest.approx(1.0)
    assert h100.seconds(Work(other_bytes=h100.bandwidth), torch.bfloat16) == pytest.approx(1.0)
    assert all(each.memory_mb > 0 for each in GPUS.values())
    here = this_machine("cpu")
    assert here.measured and here.memory_mb > 0 and here.flops[torch.float32] > 1e8 and 1e8 < here.bandwidth < 1e13


def test_several_processes_have_a_share_of_a_step_each(cli: Cli, place: Place) -> None:  # noqa: F811
    what = ("plan", "--base", place.base, "--length", 64, "--methods", "lora", "--objectives", "sft,dpo,ppo", "--json")
    one, two, five = (cli(*what, "--gpu", "l4", "--processes", count).json for count in (1, 4, 100))
    assert (one["processes"], two["processes"]) == (1, 4) and one["machine"] == two["machine"]
    for alone, shared, least in zip(one["rows"], two["rows"], five["rows"], strict=True):
        assert shared["steps"] == alone["steps"] == least["steps"]
        assert least["parts"]["activations"] <= shared["parts"]["activations"] < alone["parts"]["activations"]
        assert least["seconds"] <= shared["seconds"] < alone["seconds"]
        assert shared["parts"]["optimizer"] == alone["parts"]["optimizer"], "each process has all that moves"
    here = cli(*what, "--processes", 2).json
    assert here["machine"]["memory_mb"] == pytest.approx(this_machine().memory_mb / 2, rel=0.2)
    refused = cli(*what, "--processes", 2, "--measure")
    assert refused.code == 2 and "--measure takes steps in one process" in refused.err
