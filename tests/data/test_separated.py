"""CSV and TSV: delimiters that are found, and quotation marks that glue no rows together."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunescope.data.reading import Table, read
from tunescope.errors import DataError

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r"))  # which the module may not quote


def table_of(folder: Path, content: str, name: str = "rows.csv", skip_bad: int = 0) -> Table:
    file = folder / name
    file.write_text(content, encoding="utf-8", newline="")
    return read(file, skip_bad=skip_bad)


def bad_rows(folder: Path, content: str) -> list[str]:
    with pytest.raises(DataError) as caught:
        table_of(folder, content)
    return [line.strip() for line in str(caught.value).splitlines()[1:-1]]


# Delimiters


@pytest.mark.parametrize("name", ["rows.csv", "rows.tsv"])
@pytest.mark.parametrize(("sign", "word"), [(",", "comma"), (";", "semicolon"), ("\t", "tab"), ("|", "vertical bar")])
def test_the_delimiter_is_found_and_said(sign: str, word: str, name: str, tmp_path: Path) -> None:
    content = f'text{sign}label\n"good{sign} really"{sign}pos\nbad{sign}neg\n'
    table = table_of(tmp_path, content, name)
    assert table.rows == [{"text": f"good{sign} really", "label": "pos"}, {"text": "bad", "label": "neg"}]
    native = sign == {"rows.csv": ",", "rows.tsv": "\t"}[name]
    assert table.notes == ([] if native else [f"the delimiter is a {word}"])


def test_commas_in_texts_do_not_make_a_comma_the_delimiter(tmp_path: Path) -> None:
    table = table_of(tmp_path, "text;label\ngood, nice;pos\nbad, sad;neg\n")
    assert table.rows == [{"text": "good, nice", "label": "pos"}, {"text": "bad, sad", "label": "neg"}]


@pytest.mark.parametrize(
    "content",
    [
        "text\na; b\nc; d\n",  # one column
        "text,label\na;b;c,x\nd;e;f,y\n",  # other signs in the texts
        "text;note,label\na;b,x\nc;d,y\n",  # also in the header: under both every row fits
    ],
)
def test_a_comma_stays_the_delimiter_in_doubt(content: str, tmp_path: Path) -> None:
    table = table_of(tmp_path, content)
    assert table.notes == []
    assert table.columns == tuple(content.split("\n")[0].split(","))


def test_where_nothing_fits_the_header_is_read_by_the_files_own_delimiter(tmp_path: Path) -> None:
    assert bad_rows(tmp_path, "text,label\nlonely\n") == ["line 2: has 1 fields, the header has 2"]


# Quotation marks


@given(
    rows=st.lists(st.fixed_dictionaries({"a": texts, "b": texts, "c": texts}), min_size=1, max_size=5),
    end=st.sampled_from(["\n", "\r\n"]),
    sign=st.sampled_from(",;\t|"),
)
def test_what_the_csv_module_writes_is_read(
    tmp_path_factory: Any, rows: list[dict[str, str]], end: str, sign: str
) -> None:
    """Quoted where it must be; the last column keeps every line from looking like a row of its own."""
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, ["a", "b", "c"], lineterminator=end, delimiter=sign)
    writer.writeheader()
    writer.writerows({**row, "c": "c" + row["c"]} for row in rows)
    table = table_of(tmp_path_factory.mktemp("rows"), out.getvalue(), "rows.tsv" if sign == "\t" else "rows.csv")
    assert [list(row.values()) for row in table.rows] == [[row["a"], row["b"], "c" + row["c"]] for row in rows]


def test_a_quotation_mark_inside_a_field_is_text(tmp_path: Path) -> None:
    table = table_of(tmp_path, 'text,label\nHe said "no",a\n5" pipe,b\n')
    assert [row["text"] for row in table.rows] == ['He said "no"', '5" pipe']


def test_a_quotation_that_is_never_closed_loses_its_own_line_alone(tmp_path: Path) -> None:
    content = 'text,label\na,pos\n"Great,pos\n' + "b,neg\nc,pos\n" * 12
    assert bad_rows(tmp_path, content) == [
        "line 3: lines 3 to 27: a quotation mark opened here is never closed, or closed in another row; lines 4 to 27 "
        "are read by themselves"
    ]
    table = table_of(tmp_path, content, skip_bad=1)
    assert table.lines == [2, *range(4, 28)]


@pytest.mark.parametrize(
    "rows",
    [
        ['"Great,pos', "b,neg", '5 inch",neg'],  # ends before a delimiter, as a quotation should
        ['"Great,pos', "b,neg", 'He said "so",neg'],
        ['"Great,pos', "b,neg", '"quoted, too",neg'],
        ['pos,"Great', "neg,b", 'neg,5"'],
    ],
)
def test_a_stray_quotation_mark_glues_no_rows_together(rows: list[str], tmp_path: Path) -> None:
    others = ["x,pos", "y,neg", "pos,x", "neg,y"]
    content = "\n".join(["text,label", *others, *rows, *others]) + "\n"
    (said,) = bad_rows(tmp_path, content)
    assert said.startswith("line 6: lines 6 to ")
    table = table_of(tmp_path, content, skip_bad=1)
    assert table.lines == [2, 3, 4, 5, 7, 8, 9, 10, 11, 12]


def test_many_lines_that_look_like_rows_are_rows(tmp_path: Path) -> None:
    glued = "".join(f"text {i},answer {i}\n" for i in range(12))
    (said,) = bad_rows(tmp_path, f'text,label\nx,y\n"{glued}last",z\n')
    assert said.startswith("line 3: lines 3 to 15: a quotation mark")


@pytest.mark.parametrize(
    "text", ["two\nlines", "Dear Sir,\nit came, but late\n\nregards", "a\r\nb", 'he said "no"\nand left', "\n"]
)
def test_texts_of_several_lines_are_kept(text: str, tmp_path: Path) -> None:
    quoted = text.replace('"', '""')
    table = table_of(tmp_path, f'text,label\nx,pos\n"{quoted}",pos\ny,neg\n')
    assert [row["text"] for row in table.rows] == ["x", text, "y"]
    assert table.notes == []


def test_a_text_whose_lines_could_be_rows_is_kept_and_said(tmp_path: Path) -> None:
    table = table_of(tmp_path, 'label,code\npython,"def f():\nreturn g(x,y)"\nc,z\n')
    assert table.rows[0] == {"label": "python", "code": "def f():\nreturn g(x,y)"}
    assert table.notes == [
        "by their quotation marks these rows have several lines, each of which could be a row of its own: line 2"
    ]


def test_text_behind_a_closing_quotation_mark(tmp_path: Path) -> None:
    assert bad_rows(tmp_path, 'text,label\n"so" it,a\nb,c\n') == [
        "line 2: text stands behind a closing quotation mark; inside quotation marks write it twice"
    ]
