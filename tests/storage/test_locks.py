"""One writer: a second run, in another process or thread, is refused and learns who writes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.storage.test_ownership import comparison, exports, pairs, prompting
from tests.tiny import tiny_base

from tunescope import bank
from tunescope.data.rows import Row
from tunescope.errors import TunescopeError
from tunescope.judging.preference_pairs import samples_path
from tunescope.locks import writing
from tunescope.methods import LoRA
from tunescope.training import StepMetrics, TrainSettings, train

HOLD = """
import sys, time
from tunescope.locks import writing
with writing(sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[Callable[[Path], subprocess.Popen[str]]]:
    """Starts a process that writes to a path until it is killed."""
    started = []

    def start(path: Path) -> subprocess.Popen[str]:
        process = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_every_writer_is_refused_while_another_process_writes(
    holder: Callable[[Path], subprocess.Popen[str]], tmp_path: Path
) -> None:
    out, file = tmp_path / "a", tmp_path / "p.jsonl"
    process, *_ = holder(out), holder(samples_path(file))
    who = rf"a is being written by another run \(process {process.pid} on .*, since \d{{4}}-.*: .*\). Wait until"
    for write in (lambda: prompting(out), lambda: comparison(out), *exports(out)):
        with pytest.raises(TunescopeError, match=who):
            write()
    with pytest.raises(TunescopeError, match="is being written by another run"):
        pairs(file)
    with pytest.raises(TunescopeError, match="is being written"), writing(tmp_path / "sub" / ".." / "a"):
        pass
    assert not out.exists() and not file.exists()
    process.kill()
    process.wait()
    prompting(out)
    assert bank.read_record(out).method == "zero-shot"


def test_the_commands_say_it_before_any_work(
    holder: Callable[[Path], subprocess.Popen[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tunescope.cli import main

    holder(tmp_path / "a")
    holder(tmp_path / "p.jsonl")
    no_work = ["--base", "no-base", "--data", "no-data"]
    for arguments in (
        ["train", "lora", *no_work, "--out", tmp_path / "a"],
        ["compare", *no_work, "--out", tmp_path / "a"],
        ["pairs", "--base", "x", "--prompts", "y", "--judge", "z", "--out", tmp_path / "p.jsonl"],
        ["bank", "export", tmp_path / "none", "--to", "peft", "--out", tmp_path / "a"],
        ["bank", "import", tmp_path / "none", "--base", "no-base", "--out", tmp_path / "a"],
        ["bank", "merge", tmp_path / "none", tmp_path / "none", "--out", tmp_path / "a"],
    ):
        with pytest.raises(SystemExit, match="2"):
            main([str(argument) for argument in arguments])
        assert "is being written by another run (process" in " ".join(capsys.readouterr().err.split())


def test_two_runs_of_other_settings_do_not_mix(tmp_path: Path) -> None:
    """While a run trains, a run of another rate is refused; the record and the weights are the first one's."""
    rows = [Row(({"role": "user", "content": f"word {i}"},), "yes", i + 1) for i in range(8)]
    second: list[str] = []

    def other() -> None:
        try:
            train(tiny_base(), LoRA(), data=rows, settings=settings(3e-2), out=tmp_path / "a", restart=True)
        except TunescopeError as error:
            second.append(str(error))

    def settings(lr: float) -> TrainSettings:
        return TrainSettings(max_steps=3, batch_size=4, lr=lr, checkpoint_every=1)

    def during(metrics: StepMetrics) -> None:
        if metrics.step == 2:
            thread = threading.Thread(target=other)
            thread.start()
            thread.join()

    trained = train(tiny_base(), LoRA(), data=rows, settings=settings(1e-4), out=tmp_path / "a", on_step=during)
    alone = train(tiny_base(), LoRA(), data=rows, settings=settings(1e-4))
    assert len(second) == 1 and f"(process {os.getpid()} on " in second[0]
    assert trained.result.losses == alone.result.losses
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]


def test_nothing_is_left_and_the_same_thread_may_ask_again(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "er" / "a"
    with writing(out) as path, writing(out) as again:
        assert path == again == out
        assert sorted(file.name for file in out.parent.iterdir()) == [".a.lock", ".a.lock.json"]
    assert list(tmp_path.iterdir()) == []


def test_a_killed_writer_is_no_obstacle(holder: Callable[[Path], subprocess.Popen[str]], tmp_path: Path) -> None:
    process = holder(tmp_path / "a")
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (tmp_path / ".a.lock.json").is_file()
    with writing(tmp_path / "a"):
        pass
    assert list(tmp_path.iterdir()) == []
