from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunescope.data.reading import BadRow, check_bad, read
from tunescope.errors import DataError, UnknownNameError

texts = st.text(st.characters(exclude_categories=["Cs"]))
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)


def write(folder: Path, name: str, content: str | bytes) -> Path:
    file = folder / name
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return file


@given(rows=st.lists(st.fixed_dictionaries({"a": values, "b": texts}), min_size=1, max_size=6), escape=st.booleans())
def test_jsonl_and_json_round_trip(tmp_path_factory: Any, rows: list[dict[str, Any]], escape: bool) -> None:
    folder = tmp_path_factory.mktemp("rows")
    lines = "".join(json.dumps(row, ensure_ascii=escape) + "\n" for row in rows)
    table = read(write(folder, "rows.jsonl", lines))
    assert (table.rows, table.lines) == (rows, list(range(1, len(rows) + 1)))
    for indent in (None, 2):
        assert read(write(folder, "rows.json", json.dumps(rows, ensure_ascii=escape, indent=indent))).rows == rows


@given(
    header=st.lists(texts.filter(str.strip), min_size=1, max_size=3, unique=True),
    data=st.data(),
    end=st.sampled_from(["\n", "\r\n"]),
    suffix=st.sampled_from([".csv", ".tsv"]),
)
def test_csv_round_trip(tmp_path_factory: Any, header: list[str], data: Any, end: str, suffix: str) -> None:
    if header[0].startswith("\ufeff"):
        return  # a byte order mark at the start of a file is no part of the name
    rows = data.draw(st.lists(st.fixed_dictionaries(dict.fromkeys(header, texts)), min_size=1, max_size=5))
    out = io.StringIO(newline="")
    writer = csv.DictWriter(
        out, header, lineterminator=end, delimiter="," if suffix == ".csv" else "\t", quoting=csv.QUOTE_ALL
    )
    writer.writeheader()
    writer.writerows(rows)
    table = read(write(tmp_path_factory.mktemp("rows"), f"rows{suffix}", out.getvalue()))
    assert table.rows == rows
    assert table.columns == tuple(header)


def test_all_bad_lines_are_told_at_once(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        "rows.jsonl",
        b'{"a": 1}\n'
        b"\n"
        b'{"a": \n'
        b"[1]\n"
        b'{"a": "\xff"}\n'
        b'{"b": 2}\n'
        b'{"a": NaN}\n'
        b'{"a": 1, "a": 2}\n'
        b'{"a": "\\ud800"}\n'
        b"{}\n" + b'{"a": ' * 100_000 + b"\n"
        b'{"a": 2, "extra": "\xc3\xa9\xc3\xa9"}\n',  # the file is UTF-8 but for one byte
    )
    with pytest.raises(DataError) as caught:
        read(file)
    assert str(caught.value).splitlines() == [
        f"{file}: 9 bad rows.",
        "  line 3: is not valid JSON: Expecting value at column 7",
        "  line 4: is a JSON array, expected an object",
        "  line 5: is not valid UTF-8 (byte 8 of the line)",
        "  line 6: has no a; its columns are b",
        "  line 7: is not valid JSON: NaN is not a JSON value",
        "  line 8: is not valid JSON: 'a' stands twice in one object",
        "  line 9: holds half of a surrogate pair (\\ud800 to \\udfff), which is no text",
        "  line 10: is an empty object",
        "  line 11: is nested too deeply",
        "Mend the data, or leave such rows out with --skip-bad 9.",
    ]
    table = read(file, skip_bad=9)
    assert (table.rows, table.lines) == ([{"a": 1}, {"a": 2, "extra": "éé"}], [1, 12])
    assert [row.line for row in table.skipped] == list(range(3, 12))
    assert table.columns == ("a",)


def test_an_odd_first_row_does_not_condemn_the_others(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="line 1: has no text; its columns are txt"):
        read(write(tmp_path, "rows.jsonl", '{"txt": "a"}\n{"text": "b"}\n{"text": "c"}\n'))


def test_bad_csv_rows(tmp_path: Path) -> None:
    file = write(tmp_path, "rows.csv", b'text,label\n"tw\xc3\xb6\nlines",a\nlonely\n\nx,y,z\n\xe9,b\n"open,c\nd,e\n')
    with pytest.raises(DataError) as caught:
        read(file)
    assert str(caught.value).splitlines()[1:-1] == [
        "  line 4: has 1 fields, the header has 2",
        "  line 6: has 3 fields, the header has 2",
        "  line 7: is not valid UTF-8",
        "  line 8: lines 8 to 9: a quotation mark opened here is never closed, or closed in another row; line 9 is "
        "read by itself",
    ]
    table = read(file, skip_bad=4)
    assert (table.rows, table.lines) == ([{"text": "twö\nlines", "label": "a"}, {"text": "d", "label": "e"}], [2, 9])


def test_a_long_field_and_a_byte_order_mark(tmp_path: Path) -> None:
    story = "word " * 100_000
    table = read(write(tmp_path, "rows.csv", "\ufefftext,label\n" + story + ",a\n"))
    assert table.rows == [{"text": story, "label": "a"}]


@pytest.mark.parametrize(
    ("header", "message"),
    [("text,,label", "a column without a name"), ("text,text", "names 'text' twice"), ('"text', "header is broken")],
)
def test_bad_csv_headers(tmp_path: Path, header: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(write(tmp_path, "rows.csv", header + "\na,b\n"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"a": 1}\n{"a": 2}]', "line 2: expected a comma or the end"),
        ('[{"a": 1},\n {"a": }]', "the element at line 2 is not valid JSON: Expecting value"),
        ('[{"a": 1},\n 3]', "line 2: is a JSON number, expected an object"),
        ('[{"a": 1}', "expected a comma or the end"),
        ('[{"a": 1}] tail', "'tail' stands behind the end"),
        ("[]", "holds no rows"),
        ("", "holds no rows"),
    ],
)
def test_bad_json_arrays(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(write(tmp_path, "rows.json", content))


def test_a_json_file_may_hold_lines(tmp_path: Path) -> None:
    assert read(write(tmp_path, "rows.json", '{"a": 1}\n{"a": 2}\n')).lines == [1, 2]


def test_parquet(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    rows = [{"text": "a", "scores": [1, 2]}, {"text": "b", "scores": []}]
    file = tmp_path / "rows.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    table = read(file)
    assert (table.rows, table.lines, table.columns) == (rows, [1, 2], ("text", "scores"))
    for content in (b"", b"no parquet", file.read_bytes()[:-9]):
        with pytest.raises(DataError, match="not a readable Parquet file"):
            read(write(tmp_path, "bad.parquet", content))


def test_files_that_are_not_there(tmp_path: Path) -> None:
    write(tmp_path, "train.jsonl", "")
    with pytest.raises(DataError, match=r"no file .*trian\.jsonl\. Did you mean .*train\.jsonl\?"):
        read(tmp_path / "trian.jsonl")
    with pytest.raises(DataError, match=r"is a folder\. Name one file in it: train\.jsonl"):
        read(tmp_path)
    with pytest.raises(DataError, match=r"holds no rows"):
        read(tmp_path / "train.jsonl")
    with pytest.raises(DataError, match=r"cannot tell the format from '\.xlsx'"):
        read(write(tmp_path, "rows.xlsx", ""))
    with pytest.raises(DataError, match="has no splits"):
        read(tmp_path / "train.jsonl", split="test")
    with pytest.raises(UnknownNameError, match=r"Did you mean reuters-r8"):
        read("reuters-r9")


def test_only_the_first_twenty_bad_rows_are_listed() -> None:
    bad = [BadRow(line, "odd") for line in range(1, 31)]
    with pytest.raises(DataError) as caught:
        check_bad("file", bad, 29)
    assert len(str(caught.value).splitlines()) == 23
    assert "and 10 more" in str(caught.value)
    check_bad("file", bad, 30)


def test_hub_sets_give_label_names(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    features = datasets.Features(text=datasets.Value("string"), label=datasets.ClassLabel(names=["bad", "good"]))
    part = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, -1]}, features=features)
    asked = []

    def load(name: str, subset: str | None) -> datasets.DatasetDict:
        asked.append((name, subset))
        return datasets.DatasetDict(validation=part, train=part)

    monkeypatch.setattr(datasets, "load_dataset", load)
    table = read("some/set:small")
    assert asked == [("some/set", "small")]
    assert table.rows == [{"text": "a", "label": "good"}, {"text": "b", "label": None}]
    assert table.name == "some/set:small (train)"
    with pytest.raises(DataError, match="no split 'test'; it has validation, train"):
        read("some/set", split="test")


def test_a_hub_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def offline(*_: object) -> None:
        raise ConnectionError("Couldn't reach the hub")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(DataError, match=r"did not give the data set some/set: Couldn't reach the hub"):
        read("some/set")


# Encodings


SAID = {
    "utf-8": [],
    "utf-8-sig": [],
    "utf-16": ["read as UTF-16"],
    "utf-16-be": ["read as UTF-16"],
    "utf-32": ["read as UTF-32"],
    "cp1252": ["not valid UTF-8, so read as Windows-1252"],
}


@pytest.mark.parametrize("encoding", SAID)
@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl", "rows.json"])
def test_encodings_are_recognized_and_said(encoding: str, name: str, tmp_path: Path) -> None:
    rows = [{"text": "café “or” naïve", "label": "5 €"}, {"text": "ça", "label": "6 €"}]
    content = {
        "rows.csv": "text,label\n" + "".join(f"{row['text']},{row['label']}\n" for row in rows),
        "rows.jsonl": "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows),
        "rows.json": json.dumps(rows, ensure_ascii=False),
    }[name]
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    table = read(write(tmp_path, name, (mark + content).encode(encoding)))
    assert table.rows == rows
    assert table.notes == SAID[encoding]


def test_a_mark_that_promises_too_much(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="begins with the mark of UTF-16 but is not valid UTF-16"):
        read(write(tmp_path, "rows.csv", b"\xff\xfeabc"))


@pytest.mark.parametrize("bad", [b"caf\xc3", b"\x93", b"\x00\xe9"])
def test_damaged_lines_of_a_utf_8_file_are_bad_rows(bad: bytes, tmp_path: Path) -> None:
    content = "text,label\nçédille,a\n".encode() + bad + b",b\n"
    with pytest.raises(DataError, match="line 3: is not valid UTF-8"):
        read(write(tmp_path, "rows.csv", content))


# One object that holds the rows


@pytest.mark.parametrize("name", ["data", "rows", "train", "examples"])
@pytest.mark.parametrize("indent", [None, 2])
def test_an_object_that_holds_the_rows(name: str, indent: int | None, tmp_path: Path) -> None:
    rows = [{"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": "d"}]
    written = json.dumps({"version": "1.0", "by": {name: [1]}, name: rows, "test": rows}, indent=indent)
    table = read(write(tmp_path, "rows.json", written))
    assert table.rows == rows
    assert table.notes == [f"read the rows under {name!r}; not read: by, test, version"]
    assert [written.split("\n")[line - 1].strip()[0] for line in table.lines] == ["{", "{"]


def test_one_row_over_several_lines(tmp_path: Path) -> None:
    table = read(write(tmp_path, "rows.json", '\n{\n  "prompt": "a",\n  "completion": "b"\n}\n'))
    assert (table.rows, table.lines, table.notes) == ([{"prompt": "a", "completion": "b"}], [2], [])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"data": [{"a": 1}], "rows": [{"a": 2}]}', "one object with rows under data and under rows"),
        ('{\n"version": 1,\n"data": []\n}', "is one object; the rows are expected to be a list of objects under data"),
        ('{\n  "data": [\n    {"a": 1},\n    {"a": }\n  ]\n}\n', r"rows.json: line 4: is not valid JSON"),
        ('{\n  "data": [{"a": "\\ud800"}]\n}', "holds half of a surrogate pair"),
    ],
)
def test_objects_that_hold_no_rows(content: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        read(write(tmp_path, "rows.json", content))


# Integers beside missing values

WHOLE = ["label: whole numbers beside missing values are read as integers (1.0 as 1)"]


@pytest.mark.parametrize(
    ("values", "expected", "notes"),
    [
        ([1.0, None, 0.0], [1, None, 0], WHOLE),
        ([1.0, 2.0, 3.0], [1.0, 2.0, 3.0], []),  # nothing is missing: they may be meant
        ([1.0, None, 0.5], [1.0, None, 0.5], []),
        ([1, None, 0], [1, None, 0], []),
        ([True, None, 1.0], [True, None, 1.0], []),
        (["1.0", None, "x"], ["1.0", None, "x"], []),
    ],
)
def test_integer_labels_beside_a_null_stay_integers(
    values: list[Any], expected: list[Any], notes: list[str], tmp_path: Path
) -> None:
    import pandas

    rows = [{"text": "a", "label": value} for value in values]
    table = read(write(tmp_path, "rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows)))
    assert repr([row["label"] for row in table.rows]) == repr(expected)
    assert table.notes == notes
    if notes:
        frame = pandas.DataFrame(rows)  # pandas itself makes floats of such a column
        frame.to_csv(tmp_path / "rows.csv", index=False)
        frame.to_parquet(tmp_path / "rows.parquet")
        for name in ("rows.csv", "rows.parquet"):
            table = read(tmp_path / name)
            assert repr([row["label"] for row in table.rows]) == repr(expected)
            assert table.notes == notes
