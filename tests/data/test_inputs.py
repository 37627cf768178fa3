"""Data in every form that a caller may give, and what it is refused for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.tiny import tiny_base

import tunescope as ts
from tunescope.data.inputs import understand

PATTERN = "{text} topic: {label}"
ROWS = [{"text": f"the {('sun', 'rain')[i % 2]} of day {i}", "label": ("warm", "wet")[i % 2]} for i in range(20)]
PAIRS = [{"prompt": f"Say {i}.", "chosen": f"{i}!", "rejected": "No."} for i in range(4)]
QUICK = ts.TrainSettings(max_steps=2, batch_size=2)


def file(folder: Path, rows: list[dict[str, Any]]) -> Path:
    path = folder / f"{len(rows)}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


FORMS: dict[str, Callable[[Path, list[dict[str, Any]]], Any]] = {
    "file name": lambda folder, rows: str(file(folder, rows)),
    "path": file,
    "table": lambda folder, rows: ts.read(file(folder, rows)),
    "mappings": lambda folder, rows: rows,
    "rows": lambda folder, rows: understand(rows, None if "chosen" in rows[0] else PATTERN, **_kind(rows)).rows,
}


def _kind(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {"kind": ts.Pair, "convert": ts.DPO().rows} if "chosen" in rows[0] else {}


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[list[dict[str, Any]]], Any]:
    return lambda rows: FORMS[request.param](tmp_path, rows)


def test_train_takes_every_form(form: Callable[[list[dict[str, Any]]], Any]) -> None:
    trained = ts.train(tiny_base(), ts.IA3(), data=form(ROWS), pattern=PATTERN, settings=QUICK)
    expected = ts.train(tiny_base(), ts.IA3(), data=ROWS, pattern=PATTERN, settings=QUICK)
    assert trained.record.labels == ("warm", "wet")
    assert trained.record.template.pattern == PATTERN
    assert trained.record.data is not None and expected.record.data is not None
    assert trained.record.data.sha256 == expected.record.data.sha256
    assert trained.record.training["loss"] == expected.record.training["loss"]


def test_train_takes_every_form_of_pairs(form: Callable[[list[dict[str, Any]]], Any]) -> None:
    trained = ts.train(tiny_base(), ts.IA3(), ts.DPO(), form(PAIRS), settings=QUICK)
    assert trained.record.data is not None
    assert trained.record.data.rows == 4


def test_train_takes_every_form_of_ranked_responses(tmp_path: Path) -> None:
    rows = [{"prompt": f"Say {i}.", "responses": ["No.", f"{i}!", "Hm."], "ranks": [2, 1, 2]} for i in range(4)]
    read = [FORMS[name](tmp_path, rows) for name in ("file name", "table", "mappings")]
    made = [
        ts.Ranking(({"role": "user", "content": f"Say {i}."},), (f"{i}!", "No.", "Hm."), (1, 2, 2), 1) for i in range(4)
    ]
    trained = [ts.train(tiny_base(), ts.IA3(), ts.Reward(), form, settings=QUICK) for form in (*read, made)]
    assert {each.record.data.sha256 for each in trained if each.record.data} == {trained[0].record.data.sha256}
    assert {tuple(each.result.losses) for each in trained} == {tuple(trained[0].result.losses)}
    with pytest.raises(ts.TunescopeError, match="is a Ranking, expected a Row or"):
        ts.train(tiny_base(), ts.IA3(), ts.SFT(), made)
    with pytest.raises(ts.TunescopeError, match="is a Row, expected a Pair or a Ranking or a Mapping"):
        ts.train(tiny_base(), ts.IA3(), ts.Reward(), understand(ROWS, PATTERN).rows)


def test_evaluate_takes_every_form(form: Callable[[list[dict[str, Any]]], Any]) -> None:
    asked = ts.train(tiny_base(), ts.ZeroShot(), data=ROWS, pattern=PATTERN).customized
    card = ts.evaluate(asked, form(ROWS[:6]), labels=("warm", "wet"), generate_rows=0)
    expected = ts.evaluate(asked, ROWS[:6], labels=("warm", "wet"), generate_rows=0)
    assert card["rows"] == 6
    assert [card[key] for key in ("nll_per_token", "per_row", "row_keys")] == [
        expected[key] for key in ("nll_per_token", "per_row", "row_keys")
    ]


def test_compare_takes_every_form(form: Callable[[list[dict[str, Any]]], Any], tmp_path: Path) -> None:
    settings = ts.CompareSettings(methods=("zero-shot",), generate_rows=1, max_new_tokens=2)
    found = ts.compare(
        tiny_base(), form(ROWS), form(ROWS[:5]), out=tmp_path / "run", settings=settings, pattern=PATTERN
    )
    data = found.data
    assert (data.train_rows, data.validation_rows, data.test_rows, data.labels) == (16, 4, 5, ["warm", "wet"])
    assert found.data.template == PATTERN


@pytest.mark.parametrize(
    ("data", "objective", "said"),
    [
        (PAIRS, ts.SFT(), "chosen"),
        ([*ROWS[:3], "a text"], ts.SFT(), r"Row 4 of the data in memory is a str, expected a Row or a Mapping"),
        (ROWS[0], ts.SFT(), r"Row 1 of the data in memory is a str"),
        (understand(PAIRS, kind=ts.Pair, convert=ts.DPO().rows).rows, ts.SFT(), "is a Pair, expected a Row or"),
        (understand(ROWS, PATTERN).rows, ts.DPO(), "is a Row, expected a Pair or"),
        ([*understand(ROWS, PATTERN).rows, ROWS[0]], ts.SFT(), r"Row 21 of the data in memory is a dict, expected"),
        ([{"text": "a", "label": "b"}, {"text": "c"}, {"text": "d", "label": "e"}], ts.SFT(), "rows: 1 bad row"),
        ([{}], ts.SFT(), "line 1: is an empty object"),
    ],
)
def test_data_in_memory_that_does_not_fit_is_named(data: Any, objective: Any, said: str) -> None:
    with pytest.raises(ts.TunescopeError, match=said):
        ts.train(tiny_base(), ts.IA3(), objective, data, pattern=None if objective.takes is not ts.Row else PATTERN)


def test_bad_rows_are_counted_once_over_reading_and_understanding(tmp_path: Path) -> None:
    """One row that is no JSON and one that is empty: two bad rows of a file; a table was already read without one."""
    path = file(tmp_path, [*ROWS, {"text": "x", "label": " "}])
    path.write_text(path.read_text(encoding="utf-8") + "{\n", encoding="utf-8")
    with pytest.raises(ts.TunescopeError, match="bad row"):
        understand(path, PATTERN, skip_bad=1)
    found = understand(path, PATTERN, skip_bad=3)
    assert (len(found.rows), found.skip_bad) == (20, 1)
    assert any("left out 2 bad rows" in note for note in found.notes)
    assert understand(ts.read(path, skip_bad=1), PATTERN, skip_bad=1).skip_bad == 0
