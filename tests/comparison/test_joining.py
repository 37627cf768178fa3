"""Several processes at one comparison: the same table as one, also when a helper is killed."""

from __future__ import annotations

import os
import signal
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from tests.comparison.test_runner import TOKENS, known, run

from tunescope.comparison import Watcher
from tunescope.errors import BusyError, SettingError, TunescopeError
from tunescope.locks import writing
from tunescope.training import StepMetrics

METHODS = "few-shot,lora,ia3"


class Diary(Watcher):
    """Writes down what is begun, and takes its time: so that others get something to do."""

    def __init__(self, file: Path, pause: float = 0.0) -> None:
        self._file, self._pause = file, pause

    def begin(self, method: str, what: str) -> None:
        with self._file.open("a") as diary:
            diary.write(f"{method}: {what}\n")
        time.sleep(self._pause)

    @property
    def begun(self) -> list[str]:
        return self._file.read_text().splitlines() if self._file.exists() else []


class Killed(Diary):
    """Dies at the second step of its first candidate."""

    def step(self, metrics: StepMetrics) -> None:
        if metrics.step == 2:
            os.kill(os.getpid(), signal.SIGKILL)


def helper(out: Path, watcher: Watcher, **changes: Any) -> int:
    """A child that joins once there is something to join."""
    if child := os.fork():
        return child
    budget = str(changes.get("budget_tokens", TOKENS))
    try:
        while not (out / "state.json").exists() or budget not in (out / "call.json").read_text():
            time.sleep(0.02)
        run(out, methods=METHODS, watcher=watcher, join=True, **changes)
    except BaseException:
        os._exit(1)
    os._exit(0)


@pytest.fixture
def expected(tmp_path: Path) -> list[dict[str, Any]]:
    """What one process finds."""
    return known(run(tmp_path / "alone", methods=METHODS))


def test_two_find_what_one_finds(tmp_path: Path, expected: list[dict[str, Any]]) -> None:
    lead, joined = Diary(tmp_path / "lead", 0.4), Diary(tmp_path / "joined")
    child = helper(tmp_path / "run", joined)
    found = run(tmp_path / "run", methods=METHODS, watcher=lead)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert known(found) == expected and found.split == "test"
    tried = [line for line in lead.begun if "to step" in line]
    assert any("to step" in line for line in joined.begun), "the helper took candidates"
    assert not set(tried) & set(joined.begun), "nothing was done twice"
    assert not any("test rows" in line for line in joined.begun)


def test_what_a_killed_helper_was_at_goes_on_in_the_lead(tmp_path: Path, expected: list[dict[str, Any]]) -> None:
    lead, killed = Diary(tmp_path / "lead", 0.4), Killed(tmp_path / "killed")
    child = helper(tmp_path / "run", killed)
    found = run(tmp_path / "run", methods=METHODS, watcher=lead)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert known(found) == expected
    assert [line for line in killed.begun if "to step" in line][-1] in lead.begun
    assert known(run(tmp_path / "run", methods=METHODS, restart=True)) == expected, "its locks are no stranger's files"


def test_more_budget_is_joined_too(tmp_path: Path) -> None:
    run(tmp_path / "run", methods=METHODS)
    alone = run(tmp_path / "other", methods=METHODS)
    joined = Diary(tmp_path / "joined")
    child = helper(tmp_path / "run", joined, budget_tokens=30_000)
    found = run(tmp_path / "run", methods=METHODS, watcher=Diary(tmp_path / "lead", 0.4), budget_tokens=30_000)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0 and joined.begun
    assert alone.rows and known(found) == known(run(tmp_path / "other", methods=METHODS, budget_tokens=30_000))


def test_what_cannot_be_joined(tmp_path: Path) -> None:
    with pytest.raises(TunescopeError, match="holds no comparison that could be joined"):
        run(tmp_path / "run", methods=METHODS, join=True)
    run(tmp_path / "run", methods="few-shot")
    with pytest.raises(TunescopeError, match="is led with another --methods, --budget-tokens: give --join the same"):
        run(tmp_path / "run", methods=METHODS, join=True, budget_tokens=50_000)
    (tmp_path / "run" / "plans" / "few-shot.json").unlink()
    with pytest.raises(TunescopeError, match="No process leads the comparison"):
        run(tmp_path / "run", methods="few-shot", join=True)
    with pytest.raises(TunescopeError, match="another settings"):
        run(tmp_path / "run", methods="few-shot", join=True, epochs=1.0)
    with pytest.raises(SettingError, match="leave --restart and --finish out"):
        run(tmp_path / "run", methods="few-shot", join=True, restart=True)


def test_a_helper_is_waited_for_and_not_written_over(tmp_path: Path) -> None:
    """The lead has gone, and a helper is at a candidate: nothing is begun anew, and the test waits for it."""
    run(tmp_path / "run", methods="lora")
    (tmp_path / "run" / "rows" / "lora.json").unlink()
    if (child := os.fork()) == 0:
        with ExitStack() as held:
            for candidate in (tmp_path / "run" / "candidates").glob("lora-*.json"):
                held.enter_context(writing(candidate))
            (tmp_path / "held").touch()
            time.sleep(3)
        os._exit(0)
    while not (tmp_path / "held").exists():
        time.sleep(0.02)
    with pytest.raises(BusyError, match="lora-"):
        run(tmp_path / "run", methods="lora", restart=True)
    found = run(tmp_path / "run", methods="lora", finish=True)
    assert os.waitpid(child, os.WNOHANG)[0] == child, "it had ended when the candidate was measured"
    assert found.row("lora").score is not None and found.split == "test"
