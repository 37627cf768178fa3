"""Unseen tasks, before and after."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.tiny import tiny_base

from tunescope.data.rows import Row
from tunescope.evaluation import evaluate_unseen
from tunescope.evaluation.task import measure_task
from tunescope.methods import LoRA
from tunescope.objectives.reference import untouched
from tunescope.training import TrainSettings, train


def rows(words: str, count: int = 16) -> list[Row]:
    return [Row(({"role": "user", "content": f"{words} {i}"},), ("yes", "no")[i % 2], i) for i in range(count)]


def test_gains_are_paired_and_what_is_measured_is_measured_alike() -> None:
    settings = TrainSettings(max_steps=30, batch_size=8, lr=1e-2)
    made = train(tiny_base(), LoRA(rank=4), data=rows("is it"), settings=settings).customized
    texts = [Row(({"role": "user", "content": f"say {i}"},), f"word {i}", i) for i in range(6)]
    tasks = {"asked": rows("was it"), "texts": texts}
    seen: list[str] = []
    card = evaluate_unseen(made, tasks, max_new_tokens=8, on_task=seen.append)
    assert seen == ["asked", "texts", "forgetting"] and card["forgetting_on"] is None
    own = card["tasks"]["asked"]
    labels = ("no", "yes")
    after, before = (measure_task(whose, tasks["asked"], labels) for whose in (made, untouched(made)))
    assert own["metric"] == "accuracy" and (own["before"], own["after"]) == (before.accuracy, after.accuracy)
    assert own["gain"] == pytest.approx((after.accuracy or 0) - (before.accuracy or 0))
    assert own["gain_low"] <= own["gain"] <= own["gain_high"] and own["nll_after"] < own["nll_before"]
    assert card["tasks"]["texts"]["metric"] == "chrf" and card["rows"] == 22
    assert card["score"] == min(each["gain"] for each in card["tasks"].values())
    same = evaluate_unseen(made, tasks, against=made, max_new_tokens=8)
    assert all(each["gain"] == 0 for each in same["tasks"].values())


def test_a_mixture_s_unseen_tasks_are_its_test_rows(tmp_path: Path) -> None:
    from tunescope.data.mixture import Mixture, unseen_rows

    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": f"t{i}", "label": "x"}) + "\n" for i in range(5)))
    task = {"data": str(path), "templates": ["{text} first {label}", "{text} second {label}"]}
    made = Mixture.parse({"tasks": {"a": task, "b": task}, "unseen": ["b"]})
    found = unseen_rows(made)
    assert list(found) == ["b"] and [row.prompt for row in found["b"]] == [f"t{i} first" for i in range(5)]
