"""A run that pauses goes on as if it had not: same losses, same tensors, one schedule of the rate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.objectives.pairs import PAIRS
from tests.tiny import tiny_base

from tunescope import bank
from tunescope.data.rows import Row
from tunescope.errors import TrainingError
from tunescope.methods import Full, LoRA, Method, PTuning
from tunescope.objectives import DPO, SFT, Objective
from tunescope.training import TrainSettings, train
from tunescope.training.unfinished import forget_run, work_folder

ROWS = [Row(({"role": "user", "content": f"word {i}"},), ("yes", "no")[i % 2], i + 1) for i in range(24)]
SETTINGS = TrainSettings(max_steps=9, batch_size=4, lr=1e-2, seed=3)


def run(out: Path, method: Method, objective: Objective | None = None, **how: Any) -> Any:
    data = ROWS if objective is None or objective.name == "sft" else PAIRS
    return train(tiny_base(), method, objective or SFT(), data, settings=SETTINGS, out=out, **how)


@pytest.mark.parametrize("objective", [SFT(), DPO()], ids=lambda each: each.name)
@pytest.mark.parametrize("method", [LoRA(rank=2, dropout=0.1), PTuning(virtual_tokens=3), Full()], ids=lambda m: m.name)
def test_a_paused_run_ends_as_one_that_was_not(method: Method, objective: Objective, tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", method, objective)
    for until in (2, 2, 7):  # a pause that was reached already is reached again at once
        paused = run(tmp_path / "parts", method, objective, until=until)
        assert (paused.path, paused.result.steps) == (None, until)
        assert not (tmp_path / "parts").exists()
    ended = run(tmp_path / "parts", method, objective)
    assert ended.result.losses == whole.result.losses
    assert not work_folder(tmp_path / "parts").exists()
    first, second = (bank.load(tmp_path / name, tiny_base()) for name in ("whole", "parts"))
    tensors = second.customization.all_tensors()
    assert all(torch.equal(t, tensors[name]) for name, t in first.customization.all_tensors().items())
    for ours, theirs in zip(first.base.model.parameters(), second.base.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_what_a_pause_returns_can_be_used(tmp_path: Path) -> None:
    """Its effects are those after the steps taken, and nothing trains any more."""
    paused = run(tmp_path / "entry", LoRA(rank=2), until=3)
    longer = run(tmp_path / "entry", LoRA(rank=2), until=6)
    assert paused.record.training["steps"] == 3 and longer.record.training["steps"] == 6
    assert not any(parameter.requires_grad for parameter in paused.customized.customization.parameters())
    before, after = (each.customized.customization.all_tensors() for each in (paused, longer))
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_a_pause_after_the_end_is_the_end(tmp_path: Path) -> None:
    assert run(tmp_path / "entry", LoRA(rank=2), until=9).path == tmp_path / "entry"


def test_a_paused_run_can_be_forgotten(tmp_path: Path) -> None:
    run(tmp_path / "entry", LoRA(rank=2), until=3)
    forget_run(tmp_path / "entry")
    forget_run(tmp_path / "entry")
    assert not work_folder(tmp_path / "entry").exists()


def test_a_pause_needs_a_place_to_go_on_from(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="needs an out"):
        train(tiny_base(), LoRA(), data=ROWS, settings=SETTINGS, until=3)
    with pytest.raises(TrainingError, match="from 1 on"):
        run(tmp_path / "entry", LoRA(), until=0)
