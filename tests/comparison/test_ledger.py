"""A comparison's ledger keeps what was done, and tells a changed comparison from the same one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunescope.comparison.ledger import Ledger
from tunescope.comparison.results import MethodResult
from tunescope.errors import TunescopeError

CONDITIONS = {"version": "1", "settings": {"seed": 0, "epochs": 1.0}}


def test_a_second_ledger_finds_what_the_first_kept(tmp_path: Path) -> None:
    first = Ledger(tmp_path / "out", CONDITIONS, ["lora"])
    assert (first.row("lora"), first.steps("lora"), first.cost()) == (None, None, 0.0)
    row = MethodResult(method="lora", name="lora", note="kept")
    first.keep_row(row)
    first.keep_steps("lora", 7)
    for seconds in (1.0, 50.0, 2.0):
        first.keep_cost(seconds)
    used = first.seconds()
    again = Ledger(tmp_path / "out", CONDITIONS, ["lora"])
    assert (again.row("lora"), again.steps("lora"), again.cost()) == (row, 7, 2.0)
    assert again.seconds() >= round(used, 3)


def test_other_conditions_are_named_and_restart_forgets(tmp_path: Path) -> None:
    Ledger(tmp_path / "out", CONDITIONS, ["lora"]).keep_steps("lora", 7)
    changed = {**CONDITIONS, "settings": {"seed": 1, "epochs": 1.0}}
    with pytest.raises(TunescopeError, match=r"settings \(seed\)"):
        Ledger(tmp_path / "out", changed, ["lora"])
    assert Ledger(tmp_path / "out", changed, ["lora"], restart=True).steps("lora") is None


@pytest.mark.parametrize("name", ["seconds", "evaluation_seconds", "rows/lora.json", "rows/lora.steps"])
def test_a_damaged_file_is_named_when_the_ledger_opens(tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"
    Ledger(out, CONDITIONS, ["lora"])
    (out / "rows").mkdir(exist_ok=True)
    (out / name).write_text("no such thing", encoding="utf-8")
    with pytest.raises(TunescopeError, match=Path(name).name):
        Ledger(out, CONDITIONS, ["lora"])
