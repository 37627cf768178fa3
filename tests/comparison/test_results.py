"""The comparison object: exact JSON round trip, no NaN, clear errors, a table that fits the terminal."""

from __future__ import annotations

import json
import math
from io import StringIO
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from rich.console import Console

from tunescope.comparison.report.terminal import render_table
from tunescope.comparison.results import Comparison, MethodResult, read_comparison
from tunescope.errors import TunescopeError

from .fixtures import make_comparison, make_row

any_float = st.floats(allow_nan=True, allow_infinity=True)


def printed(comparison: Comparison, width: int = 100) -> str:
    out = StringIO()
    Console(file=out, width=width).print(render_table(comparison))
    return out.getvalue()


def test_the_json_round_trip_is_exact() -> None:
    comparison = make_comparison()
    again = Comparison.from_json(comparison.to_json())
    assert again == comparison
    assert again.to_json() == comparison.to_json()


@settings(max_examples=60, deadline=None)
@given(any_float, any_float, any_float, st.lists(any_float, max_size=5))
def test_what_is_not_finite_is_none_and_named(score: float, loss: float, at: float, per_row: list[float]) -> None:
    row = MethodResult(method="lora", name="lora", score=score, loss=loss, per_row=per_row, curve=[(1, at, 0.5)])
    assert MethodResult.model_validate(json.loads(json.dumps(row.model_dump(mode="json"), allow_nan=False))) == row
    assert (row.score is None) == (not math.isfinite(score))
    assert (row.curve[0][1] is None) == (not math.isfinite(at))
    for key, value in (("score", score), ("loss", loss)):
        assert math.isfinite(value) or key in (row.note or "")
    assert not per_row or row.per_row == per_row or "per_row" in (row.note or "")


def test_a_row_without_a_score_says_why() -> None:
    assert MethodResult(method="full", name="full").note == "not measured"
    assert MethodResult(method="full", name="full", note="skipped: too large").note == "skipped: too large"


def test_unknown_fields_and_double_names_are_refused() -> None:
    with pytest.raises(ValidationError, match="accurracy"):
        MethodResult(method="lora", name="lora", accurracy=0.5)  # type: ignore[call-arg]
    with pytest.raises(ValidationError, match="unique"):
        make_comparison([make_row("lora", 0.9), make_row("lora", 0.8)])


def test_reading_back_takes_the_file_or_its_folder(tmp_path: Path) -> None:
    comparison = make_comparison()
    (tmp_path / "comparison.json").write_text(comparison.to_json(), encoding="utf-8")
    assert read_comparison(tmp_path) == read_comparison(tmp_path / "comparison.json") == comparison


@pytest.mark.parametrize(
    ("text", "message"), [("{", "not JSON"), ('{"tunescope": "0.1.0"}', "base: Field required"), ("[]", "the whole")]
)
def test_a_broken_file_is_a_clear_error(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "comparison.json").write_text(text)
    with pytest.raises(TunescopeError, match=message) as raised:
        read_comparison(tmp_path)
    assert "comparison.json" in str(raised.value)


def test_a_missing_file_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(TunescopeError, match="No such file"):
        read_comparison(tmp_path / "nowhere.json")


def test_the_table_fits_100_columns_and_marks_the_recommended_row() -> None:
    comparison = make_comparison()
    text = printed(comparison)
    assert max(map(len, text.splitlines())) <= 100
    marked = [line for line in text.splitlines() if line.strip().startswith("▶")]
    assert comparison.advice.recommended is not None
    assert comparison.advice.recommended in marked[0]
    assert "92.8 [89.8, 94.9]" in text
    assert "134.5M" in text
    assert "+884" in text
    assert "…" not in text


def test_the_table_names_failed_rows_and_takes_no_markup_from_names() -> None:
    rows = [make_row("lora", 0.9, name="[red]lora[/]"), make_row("full", note="out of memory at step 3")]
    text = printed(make_comparison(rows))
    assert "[red]lora[/]" in text
    assert "full: out of memory at step 3" in text
