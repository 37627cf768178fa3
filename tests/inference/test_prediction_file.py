"""Predictions in a file: the rows as they were, each with its answer; a call that was killed goes on."""

from __future__ import annotations

import json
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.inference.test_prediction import LABELS, ROWS, patterned

from tunescope.data.reading import Table, read, table_of
from tunescope.errors import DataError, Interrupted, TunescopeError
from tunescope.inference import Predictor, predict_file, prediction
from tunescope.inference.prediction_file import check_out
from tunescope.storage.unfinished import partial_path

NEW = [{"id": i, **row, "note": 'a, "b"\nc'} for i, row in enumerate(ROWS)]
FORMATS = [".csv", ".tsv", ".jsonl", ".json", ".parquet"]


def predictor(labels: tuple[str, ...] = LABELS, **given: Any) -> Predictor:
    return Predictor(patterned("lora"), labels, **given)


def table() -> Table:
    return table_of(NEW)


@pytest.mark.parametrize("ending", FORMATS)
@pytest.mark.parametrize("labels", [LABELS, ()])
def test_columns_are_kept_in_their_order_before_the_answer(
    tmp_path: Path, ending: str, labels: tuple[str, ...]
) -> None:
    out = tmp_path / f"out/answers{ending}"
    found = predict_file(predictor(labels), table(), out)
    again = read(out)
    each = ["probability", *(f"probability_{name}" for name in LABELS)]
    if ending.startswith(".json"):
        each = ["probability", "probabilities"]
    assert list(again.columns) == ["id", "text", "label", "note", "prediction", *(each if labels else [])]
    as_text = str if ending in (".csv", ".tsv") else lambda value: value
    for row, new, answer in zip(again.rows, NEW, found.predictions, strict=True):
        assert {name: row[name] for name in new} == {**new, "id": as_text(new["id"])}
        assert row["prediction"] == answer.text
        if labels:
            assert float(row["probability"]) == answer.probability
            of_each = row.get("probabilities") or {name: float(row[f"probability_{name}"]) for name in LABELS}
            assert of_each == answer.probabilities
    assert sorted(path.name for path in out.parent.iterdir()) == [f".{out.name}.tunescope.json", out.name]


@pytest.mark.parametrize("ending", FORMATS)
def test_rows_without_an_answer_keep_their_place_and_say_why(tmp_path: Path, ending: str) -> None:
    data = tmp_path / "new.jsonl"
    data.write_text('{"text": "a"}\n{broken\n{"text": ""}\n\n{"text": "b", "extra": 1}\n', encoding="utf-8")
    rows = read(data, skip_bad=2)
    with pytest.raises(DataError, match=r"(?s)new.jsonl: 2 bad rows.\n  line 2: is not valid JSON.*  line 3: text is"):
        predict_file(predictor(), rows, tmp_path / f"out{ending}", skip_bad=1)
    found = predict_file(predictor(), rows, tmp_path / f"out{ending}", skip_bad=2)
    again = read(tmp_path / f"out{ending}", optional=["text", "extra"]).rows
    assert [row["error"] or "" for row in again] == [
        "", "line 2: is not valid JSON: Expecting property name enclosed in double quotes at column 2",
        "line 3: text is empty", "",
    ]  # fmt: skip
    assert [row["prediction"] or "" for row in again] == [answer.text for answer in found.predictions]
    assert [bool(row["prediction"]) for row in again] == [True, False, False, True]
    assert predict_file(predictor(), table(), tmp_path / f"o{ending}", skip_bad=1).questions.bad == {}
    assert {row["error"] for row in read(tmp_path / f"o{ending}").rows} in ({""}, {None})  # the column is there


def test_columns_that_reading_mends_are_written_as_they_were(tmp_path: Path) -> None:
    data = tmp_path / "new.csv"
    data.write_text("text,price\na,1.0\nb,\nc,2.0\n", encoding="utf-8")
    found = predict_file(predictor(), read(data), tmp_path / "o.csv")
    assert [row["price"] for row in found.questions.rows] == ["1.0", "", "2.0"]
    assert (tmp_path / "o.csv").read_text().split("\n")[1].startswith("a,1.0,")


def test_rows_of_one_line_are_told_apart(tmp_path: Path) -> None:
    data = tmp_path / "new.json"
    data.write_text(json.dumps([{"text": ""}, *NEW]), encoding="utf-8")
    found = predict_file(predictor(), read(data, optional=["id", "label", "note"]), tmp_path / "o.jsonl", skip_bad=1)
    assert [row["text"] for row in read(tmp_path / "o.jsonl", optional=NEW[0]).rows] == [
        "", *(row["text"] for row in NEW)
    ]  # fmt: skip
    assert [answer.error is None for answer in found.predictions] == [False, *[True] * len(NEW)]


@pytest.mark.parametrize("labels", [LABELS, ()], ids=["labels", "texts"])
@pytest.mark.parametrize("killed_after", [0, 1, 4, 8])
def test_a_killed_call_goes_on_and_ends_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, labels: tuple[str, ...], killed_after: int
) -> None:
    """SIGKILL leaves no time for anything: the child is killed between two rows and the call is made again."""
    monkeypatch.setattr(prediction, "_TOGETHER", 2)
    whole, out = tmp_path / "whole.csv", tmp_path / "killed.csv"
    predict_file(predictor(labels), table(), whole)
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)

        def kill(done: int) -> None:
            if done >= killed_after:
                os.kill(os.getpid(), signal.SIGKILL)

        predict_file(predictor(labels), table(), out, on_done=kill)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert not out.exists() and partial_path(out).is_file()
    with partial_path(out).open("a", encoding="utf-8") as file:
        file.write('{"3": {"text": "killed in the midd')
    seen: list[int] = []
    found = predict_file(predictor(labels), table(), out, on_done=seen.append)
    assert out.read_bytes() == whole.read_bytes() and not partial_path(out).exists()
    assert found.resumed == seen[0] >= killed_after and seen == sorted(set(seen)) and seen[-1] == len(NEW)


def test_ctrl_c_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prediction, "_TOGETHER", 2)

    def interrupt(done: int) -> None:
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted, match=r"Stopped after 4 of 9 rows. Make the same call to go on"):
        predict_file(predictor(), table(), tmp_path / "o.csv", on_done=interrupt)
    assert predict_file(predictor(), table(), tmp_path / "o.csv").resumed == 4


def stopped(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave an unfinished call."""
    monkeypatch.setattr(prediction, "_TOGETHER", 2)

    def interrupt(done: int) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted):
        predict_file(predictor(), table(), out, on_done=interrupt)


def test_other_settings_do_not_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "o.csv"
    stopped(out, monkeypatch)
    for other, rows, differing in (
        (predictor(LABELS[:2]), table(), "labels"),
        (predictor(max_length=60), table(), "max_length"),
        (predictor((), max_new_tokens=4), table(), "labels, max_new_tokens"),
        (Predictor(patterned("ia3"), LABELS), table(), "customization"),
        (predictor(), table_of([*NEW, NEW[0]]), "data, rows"),
        (predictor(), table_of([{**NEW[0], "text": "other"}, *NEW[1:]]), "data"),
    ):
        with pytest.raises(DataError, match=rf"other settings \({differing}\).*--restart"):
            predict_file(other, rows, out)
    assert predict_file(predictor(max_length=60), table(), out, restart=True).resumed == 0


@pytest.mark.parametrize(
    "damage", [b"", b"[]\n", b"{}{}\n", b'{"a": 1}\n[3]\n', b'{"a": 1}\n{"1": {"x": 2}}\n', b"\xff\n"]
)
def test_a_damaged_unfinished_call_is_said(tmp_path: Path, damage: bytes) -> None:
    out = tmp_path / "o.csv"
    partial_path(out).write_bytes(damage)
    with pytest.raises(TunescopeError, match=r"\.o\.csv\.partial\.jsonl is damaged|other settings"):
        predict_file(predictor(), table(), out)
    assert not out.exists() and partial_path(out).read_bytes() == damage
    assert predict_file(predictor(), table(), out, restart=True).resumed == 0


def test_failures_are_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row that failed stops the call at its end; what was answered is kept, and more may be skipped then."""
    chosen = Predictor._chosen

    def fails(self: Predictor, scores: Any) -> prediction.Prediction:
        return prediction.Prediction("", error="no reason")

    monkeypatch.setattr(prediction, "_TOGETHER", 8)
    calls = iter([chosen] * 8 + [fails] * 9)
    monkeypatch.setattr(Predictor, "_chosen", lambda self, scores: next(calls)(self, scores))
    with pytest.raises(DataError, match=r"rows: 1 bad row.\n  line \d: no reason"):
        predict_file(predictor(), table(), tmp_path / "o.jsonl")
    found = predict_file(predictor(), table(), tmp_path / "o.jsonl", skip_bad=1)
    assert found.resumed == 8 and sum(answer.error == "no reason" for answer in found.predictions) == 1
    assert sum("no reason" in str(row["error"]) for row in read(tmp_path / "o.jsonl").rows) == 1


@pytest.mark.parametrize(
    ("column", "ending", "skip_bad"),
    [("prediction", ".csv", 0), ("probability", ".csv", 0), ("probability_praise", ".tsv", 0),
     ("probabilities", ".jsonl", 0), ("error", ".csv", 1)],
)  # fmt: skip
def test_no_column_is_replaced(tmp_path: Path, column: str, ending: str, skip_bad: int) -> None:
    rows = table_of([{**row, column: "mine"} for row in NEW])
    with pytest.raises(DataError, match=f"rows has a column {column} already"):
        predict_file(predictor(), rows, tmp_path / f"o{ending}", skip_bad=skip_bad)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_is_taken_is_refused(tmp_path: Path) -> None:
    (tmp_path / "o.csv").write_text("mine")
    (tmp_path / "d.csv").mkdir()
    for name, overwrite, words in (
        ("o.csv", False, "exists already.*--overwrite"),
        ("o.csv", True, "was not written by tunescope"),
        ("d.csv", True, "is a folder"),
        ("o.xlsx", False, "cannot tell the format"),
    ):
        with pytest.raises(TunescopeError, match=words):
            check_out(tmp_path / name, overwrite)
    assert (tmp_path / "o.csv").read_text() == "mine"


def test_an_earlier_file_is_replaced_where_that_is_asked(tmp_path: Path) -> None:
    out = tmp_path / "o.csv"
    predict_file(predictor(), table(), out)
    before = out.read_bytes()
    with pytest.raises(TunescopeError, match=r"exists already.*--overwrite"):
        predict_file(predictor(()), table(), out)
    assert out.read_bytes() == before
    predict_file(predictor(()), table(), out, overwrite=True)
    assert out.read_bytes() != before


def test_there_is_one_writer(tmp_path: Path) -> None:
    def second(done: int) -> None:
        with (
            ThreadPoolExecutor() as other,
            pytest.raises(TunescopeError, match=r"o.csv is being written by another run \(process"),
        ):
            other.submit(check_out, tmp_path / "o.csv", True).result()

    predict_file(predictor(), table(), tmp_path / "o.csv", on_done=second)
