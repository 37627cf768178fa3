"""``train --processes``: one command, several processes, one entry; and the same under torchrun."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from tests.cli.conftest import PATTERN, Ended, Place

from tunescope import bank

Cli = Callable[..., Ended]
METRICS = ("loss", "grad_norm", "lr", "tokens")


def arguments(place: Place, out: Path, **more: object) -> list[str]:
    given = {"base": place.base, "data": place.data, "template": PATTERN, "out": out, "max-steps": 8, "lr": 1e-2}
    given |= {"dtype": "float32"} | more
    return ["train", "lora", *(str(part) for name, value in given.items() for part in (f"--{name}", value)), "--json"]


def begun(*command: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
    )  # fmt: skip


def tunescope(*given: str, **environment: str) -> subprocess.Popen[str]:
    return begun(sys.executable, "-m", "tunescope", *given, **environment)


def steps(entry: Path) -> list[list[Any]]:
    lines = map(json.loads, (entry / "metrics.jsonl").read_text().splitlines())
    return [[line[name] for name in METRICS] for line in lines]


def others_of(process: subprocess.Popen[str]) -> list[int]:
    """The processes that it started to compute with it."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    found = [int(pid) for pid in children.read_text().split()] if children.exists() else []
    return [pid for pid in found if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def wait_for(there: Callable[[], object], seconds: float = 300) -> None:
    until = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < until, "it did not come"
        time.sleep(0.02)


def test_two_make_the_entry_that_one_makes(place: Place, cli: Cli, tmp_path: Path) -> None:
    one = cli(*arguments(place, tmp_path / "bank/one")).json
    two = cli(*arguments(place, tmp_path / "bank/two", processes=2)).json
    assert steps(tmp_path / "bank/two") == [pytest.approx(step, rel=1e-4) for step in steps(tmp_path / "bank/one")]
    assert two["tokens"] == one["tokens"] and two["steps"] == 8
    assert not (tmp_path / "bank/.training").exists()
    records = [bank.read_record(tmp_path / "bank" / name) for name in ("one", "two")]
    assert records[0].train_settings == records[1].train_settings
    assert not dist.is_initialized()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_one_that_is_killed_is_named_and_the_run_goes_on_by_another_number(
    place: Place, cli: Cli, tmp_path: Path
) -> None:
    more = {"max-steps": 600, "checkpoint-every": 1, "lr": 1e-4}
    out = tmp_path / "bank/killed"
    with tunescope(*arguments(place, out, **more, processes=2)) as process:
        wait_for(lambda: (tmp_path / "bank/.training/killed/checkpoint.safetensors").exists())
        (other,) = others_of(process)
        os.kill(other, signal.SIGKILL)
        said = process.communicate(timeout=300)[1]
    assert process.returncode == 2
    assert "Process 2 was ended from outside (SIGKILL)" in said and "Traceback" not in said
    with tunescope(*arguments(place, out, **more, processes=3)) as process:
        done = len((tmp_path / "bank/.training/killed/metrics.jsonl").read_text().splitlines())
        assert done < 600
        metrics = tmp_path / "bank/.training/killed/metrics.jsonl"
        wait_for(lambda: len(metrics.read_text().splitlines()) > done + 3)
        others = others_of(process)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=300)[1]
    assert process.returncode == 130 and "everything is saved" in said
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in others))
    kept = steps(metrics.parent)
    with tunescope(*arguments(place, out, **more | {"seed": 5}, processes=2)) as process:
        said = process.communicate(timeout=300)[1]
    assert process.returncode == 2 and "had other settings (seed)" in said
    whole = cli(*arguments(place, tmp_path / "bank/whole", **more | {"checkpoint-every": 600})).json
    assert whole["steps"] == 600
    assert kept == [pytest.approx(step, rel=1e-2, abs=1e-4) for step in steps(tmp_path / "bank/whole")[: len(kept)]]


def test_torchrun_starts_it_too(place: Place, tmp_path: Path) -> None:
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "tunescope"]
    with begun(*run, *arguments(place, tmp_path / "bank/two")) as process:
        out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert json.loads(out)["steps"] == 8, "one process speaks"
    assert bank.read_record(tmp_path / "bank/two").training is not None


def test_processes_that_differ_are_told(place: Place, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    first = tunescope(*arguments(place, tmp_path / "bank/x"), RANK="0", **group)
    second = tunescope(*arguments(place, tmp_path / "bank/x", seed=1), RANK="1", **group)
    for process in (first, second):
        said = process.communicate(timeout=300)[1]
        assert process.returncode == 2
        assert "Process 2 of 2 does another run than the first one (seed)" in said


def test_what_cannot_be(place: Place, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "--processes" in cli(*arguments(place, tmp_path / "bank/x", processes=0)).err
    bad = cli(*arguments(place, tmp_path / "bank/x", processes=2, template="{nothing} {label}"))
    assert bad.code == 2 and "nothing" in bad.err
    monkeypatch.setenv("WORLD_SIZE", "2")
    twice = cli(*arguments(place, tmp_path / "bank/x", processes=2))
    assert twice.code == 2 and "leave --processes out" in twice.err
    assert not (tmp_path / "bank/x").exists()
