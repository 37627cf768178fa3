"""A comparison's ledger keeps what was done, and tells a changed comparison from the same one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunescope.comparison.candidate import Candidate, Rung
from tunescope.comparison.ledger import Ledger
from tunescope.comparison.plan import Bracket, Plan
from tunescope.comparison.results import Measured, MethodResult
from tunescope.errors import TunescopeError
from tunescope.methods.space import Point

CONDITIONS = {"version": "1", "settings": {"seed": 0, "epochs": 1.0}}
CALL = {"methods": ["lora"], "budget": 60.0, "budget_tokens": None}
PLAN = Plan(
    budget=60, step_seconds=1, step_tokens=100,
    brackets=[Bracket(first=0, count=3, rungs=[5, 15], seeds=1)],
)  # fmt: skip
CANDIDATE = Candidate.at(Point(3, {"targets": ("q", "v")}, 1e-3), "lora", 7, 15)


def test_a_second_ledger_finds_what_the_first_kept(tmp_path: Path) -> None:
    first = Ledger(tmp_path / "out", CONDITIONS, CALL)
    assert (first.row("lora"), first.plan("lora"), first.candidate(CANDIDATE)) == (None, None, CANDIDATE)
    row = Measured(candidate="lora-3, step 15", row=MethodResult(method="lora", name="lora", note="kept"))
    rung = Rung(steps=5, trained_tokens=500, seconds=5.0, rows=64, score=0.5, loss=1.0)
    measured = CANDIDATE.model_copy(update={"rungs": [rung]})
    first.keep_plan("lora", PLAN)
    first.keep_row("lora", row)
    first.keep_candidate(measured)
    for seconds in (1.0, 50.0, 2.0):
        first.spend("evaluation", seconds)
    used = first.seconds()
    again = Ledger(tmp_path / "out", CONDITIONS, CALL)
    assert (again.row("lora"), again.plan("lora"), again.candidate(CANDIDATE)) == (row, PLAN, measured)
    assert again.seconds("evaluation") == 53.0
    assert again.seconds() >= round(used, 3)


def test_a_candidate_of_other_settings_is_not_taken_for_this_one(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "out", CONDITIONS, CALL)
    ledger.keep_candidate(CANDIDATE)
    with pytest.raises(TunescopeError, match=r"lora-3\.json is of another candidate .*--restart"):
        ledger.candidate(CANDIDATE.model_copy(update={"lr": 2e-3}))


def test_other_conditions_are_named_and_restart_forgets(tmp_path: Path) -> None:
    Ledger(tmp_path / "out", CONDITIONS, CALL).keep_plan("lora", PLAN)
    changed = {**CONDITIONS, "settings": {"seed": 1, "epochs": 1.0}}
    with pytest.raises(TunescopeError, match=r"settings \(seed\)"):
        Ledger(tmp_path / "out", changed, CALL)
    assert Ledger(tmp_path / "out", changed, CALL, restart=True).plan("lora") is None


@pytest.mark.parametrize("name", ["times.json", "plans/lora.json", "rows/lora.json"])
def test_a_damaged_file_is_named_when_the_ledger_opens(tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"
    Ledger(out, CONDITIONS, CALL)
    (out / name).parent.mkdir(exist_ok=True)
    (out / name).write_text("no such thing", encoding="utf-8")
    with pytest.raises(TunescopeError, match=Path(name).name):
        Ledger(out, CONDITIONS, CALL)
