"""Processes that train together: what one process computes they compute, whatever their number."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from tests.training.team_cases import CASES, measuring, member

from tunescope.team import Team

FEW = ["lora sft", "full dpo", "one row a step", "grpo"]


def team_of(size: int, names: list[str], folder: Path, **more: Any) -> list[dict[str, Any]]:
    """What each of ``size`` processes ended with, by case."""
    store = dist.TCPStore("127.0.0.1", 0, size, is_master=True, wait_for_workers=False)
    given = (size, store.port, names, folder, *more.values())
    torch.multiprocessing.start_processes(member, given, nprocs=size, start_method="spawn")
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(size)]


def differences(found: Any, expected: Any, where: str = "") -> list[str]:
    """Where two outcomes are further apart than float32 rounds."""
    if isinstance(expected, Mapping):
        if set(found) != set(expected):
            return [f"{where}: {sorted(set(found) ^ set(expected))}"]
        return [each for key in expected for each in differences(found[key], expected[key], f"{where}/{key}")]
    if isinstance(expected, list) and (not expected or not isinstance(expected[0], float)):
        if len(found) != len(expected):
            return [f"{where}: {len(found)} and {len(expected)}"]
        pairs = enumerate(zip(found, expected, strict=True))
        return [each for i, (one, other) in pairs for each in differences(one, other, f"{where}/{i}")]
    close = torch.allclose(torch.tensor(found).double(), torch.tensor(expected).double(), atol=2e-5, rtol=2e-4)
    return [] if close else [f"{where}: {found!r:.80} and {expected!r:.80}"]


def alone(name: str) -> Any:
    """The same in this process, as it is read from a file."""
    return json.loads(json.dumps(CASES[name]()))


def test_two_processes_compute_what_one_does(tmp_path: Path) -> None:
    """All cases in the same two processes, since it takes seconds to start one."""
    first, second = team_of(2, list(CASES), tmp_path)
    assert {name: differences(first[name], alone(name)) for name in CASES} == {name: [] for name in CASES}
    assert [name for name in CASES if second[name] != first[name]] == [], "both end with the same bits"


def test_more_processes_than_rows_compute_the_same(tmp_path: Path) -> None:
    """Of three processes one has two of a step's four rows, and two have none of a step of one row."""
    first, *_ = team_of(3, FEW, tmp_path)
    assert {name: differences(first[name], alone(name)) for name in FEW} == {name: [] for name in FEW}


def test_a_gradient_that_is_lost_is_seen(tmp_path: Path) -> None:
    found = team_of(2, ["lora sft"], tmp_path, dropped=True)
    assert differences(found[0]["lora sft"]["losses"], alone("lora sft")["losses"]) != []


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("count", [0, 1, 4, 7, 16])
def test_shares_are_all_the_items_and_of_similar_length(size: int, count: int) -> None:
    items = [(i * 7) % 11 for i in range(count)]
    shares = [Team(rank, size).share_by_length(list(range(count)), items.__getitem__) for rank in range(size)]
    assert sorted(i for own in shares for i in own) == list(range(count))
    assert all(own == sorted(own) for own in shares)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    tokens = [sum(items[i] for i in own) for own in shares]
    assert max(tokens) - min(tokens) <= max(items, default=0)


def test_beside_training_a_process_waits_for_nobody(tmp_path: Path) -> None:
    """In a group of two, one process alone measures what in training all would share."""
    store = dist.TCPStore("127.0.0.1", 0, 2, is_master=True, wait_for_workers=False)
    torch.multiprocessing.start_processes(measuring, (store.port, tmp_path), nprocs=2, start_method="spawn")
    assert (tmp_path / "done").exists()
