"""What is written is read again as it was, in every format."""

from __future__ import annotations

import datetime
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunescope.data.reading import read
from tunescope.data.writing import written
from tunescope.errors import DataError

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
NAMES = ["text", "a column, with\nall", "répons\te"]


def again(rows: list[dict[str, Any]], ending: str) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"rows{ending}"
        path.write_bytes(written(rows, path))
        return read(path).rows


@given(st.lists(st.lists(TEXT, min_size=3, max_size=3), min_size=1, max_size=4))
@pytest.mark.parametrize("ending", [".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet", ".CSV"])
def test_texts_come_back(ending: str, cells: list[list[str]]) -> None:
    rows = [dict(zip(NAMES, values, strict=True)) for values in cells]
    found = again(rows, ending)
    assert found == rows and [list(row) for row in found] == [NAMES] * len(rows)


def test_values_that_are_no_text() -> None:
    rows: list[dict[str, Any]] = [
        {"a": None, "b": 1, "c": 0.1, "d": True, "e": ["x", {"y": 2}]},
        {"a": "x", "b": -2, "c": float("nan"), "d": False, "e": []},
    ]
    assert again(rows, ".csv") == [
        {"a": "", "b": "1", "c": "0.1", "d": "true", "e": '["x", {"y": 2}]'},
        {"a": "x", "b": "-2", "c": "null", "d": "false", "e": "[]"},
    ]
    assert again(rows, ".jsonl") == again(rows, ".json") == [rows[0], {**rows[1], "c": None}]
    day = {"day": datetime.date(2020, 1, 2), "n": 1.5}
    assert again([day], ".jsonl") == [{"day": "2020-01-02", "n": 1.5}]
    assert again([day], ".parquet") == [day]


def test_columns_that_some_rows_lack() -> None:
    rows = [{"a": "1"}, {"b": "2", "a": "3"}]
    assert written(rows, Path("x.csv")) == b"a,b\n1,\n3,2\n"
    assert written(rows, Path("x.jsonl")) == b'{"a": "1"}\n{"b": "2", "a": "3"}\n'
    assert again(rows, ".parquet") == [{"a": "1", "b": None}, {"a": "3", "b": "2"}]


def test_what_a_format_cannot_hold_is_refused() -> None:
    with pytest.raises(DataError, match=r"x.txt: cannot tell the format from the name. Let it end in .csv, .tsv"):
        written([{"a": "1"}], Path("x.txt"))
    with pytest.raises(DataError, match=r"Parquet cannot hold these rows .*end in .jsonl"):
        written([{"a": "x"}, {"a": [1]}], Path("x.parquet"))
