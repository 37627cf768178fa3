"""Rows from CSV and TSV (RFC 4180), with the delimiter found and stray quotation marks named.

A quotation mark inside a field that does not begin with one is text. A field that begins with one ends at the next
single one, which must stand before a delimiter or a line's end; where it does not, the quotation is broken: its line is
a bad row, and reading goes on with the line after it, so that no row is lost in it. The same holds where a quotation
ends properly but each of its lines would be a row of its own, with values that other rows have too.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Literal

from tunescope.data.json_rows import Parsed
from tunescope.errors import DataError

_DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "vertical bar"}
_SAMPLE = 100  # records that the delimiter is judged by
_MANY_LINES = 10  # so many lines that all look like rows are rows, whatever their values
_LINE_END = re.compile(r"\r\n|\n|\r")


@dataclass(frozen=True)
class _Record:
    """One record of a file.

    Attributes:
        begin: where it begins in the text.
        end: where the next one begins; behind the first line of a broken record.
        fields: its values; none of a blank line.
        broken: where the quotation that is broken would end; None if the record is whole.
    """

    begin: int
    end: int
    fields: list[str]
    broken: int | None = None


def separated(native: str) -> Callable[[str, Path, list[str]], Parsed]:
    """A reader of files whose delimiter should be ``native``. Another one is found by the header and the rows."""

    def parse(text: str, path: Path, notes: list[str]) -> Parsed:
        delimiter = _delimiter(text, native)
        if delimiter != native:
            notes.append(f"the delimiter is a {_DELIMITERS[delimiter]}")
        first = _record(text, delimiter, 0)
        if first is None:
            return
        header = _header(first, path)
        known = _known_values(text, delimiter, first.end, len(header))
        doubtful, position, line, begin = [], 0, 1, first.end
        while (record := _record(text, delimiter, begin)) is not None:
            line += _lines(text, position, record.begin)
            position, begin = record.begin, record.end
            verdict = _judged(text, record, delimiter, known)
            if verdict == "glued":
                begin = _line_end(text, record.begin)
                record = _Record(record.begin, begin, [], record.end - 1)
            elif verdict == "doubtful":
                doubtful.append(line)
            yield line, _row(record, header, text, line)
        if doubtful:
            shown = ", ".join(map(str, doubtful[:10])) + (" …" if len(doubtful) > 10 else "")
            notes.append(
                "by their quotation marks these rows have several lines, each of which could be a row of its own: line "
                f"{shown}"
            )

    return parse


def _delimiter(text: str, native: str) -> str:
    """The delimiter under which most records have as many fields as the header; ``native`` in doubt."""

    def fitting(delimiter: str) -> float:
        sample = list(islice(_records(text, delimiter), _SAMPLE))
        width = len(sample[0].fields) if sample and sample[0].broken is None else 0
        if width < 2:
            return 0.0
        return sum(len(record.fields) == width for record in sample[1:]) / max(len(sample) - 1, 1)

    shares = {delimiter: fitting(delimiter) for delimiter in _DELIMITERS}
    best = max(shares, key=lambda delimiter: shares[delimiter])
    return best if shares[best] > max(shares[native], 0.5) else native


def _records(text: str, delimiter: str, begin: int = 0) -> Iterator[_Record]:
    while (record := _record(text, delimiter, begin)) is not None:
        yield record
        begin = record.end


def _record(text: str, delimiter: str, begin: int) -> _Record | None:
    """The record at ``begin``, or the first one after blank lines; None at the end of the text."""
    plain, quoted, opened = _fields(delimiter)
    while begin < len(text):
        fields, position = [], begin
        while True:
            if text.startswith('"', position):
                match = quoted.match(text, position)
                if match is None:
                    swallowed = opened.match(text, position)
                    assert swallowed is not None  # a quotation mark stands there
                    broken = position + len(swallowed[0].rstrip("\r\n"))
                    return _Record(begin, _line_end(text, begin), [], broken)
                fields.append(match[1].replace('""', '"'))
            else:
                match = plain.match(text, position)
                assert match is not None  # it may be empty
                fields.append(match[0])
            position = match.end()
            if not text.startswith(delimiter, position):
                break
            position += 1
        end = _line_end(text, position)
        if fields != [""] or text[begin] == '"':
            return _Record(begin, end, fields)
        begin = end
    return None


@cache
def _fields(delimiter: str) -> tuple[re.Pattern[str], re.Pattern[str], re.Pattern[str]]:
    """A field without quotation, one with it, and what a quotation that is broken would hold."""
    stop, inner = re.escape(delimiter), r'(?:[^"]++|"")*+'
    return (
        re.compile(rf"[^{stop}\r\n]*"),
        re.compile(rf'"({inner})"(?={stop}|[\r\n]|\Z)'),
        re.compile(rf'"{inner}"?'),
    )


def _header(record: _Record, path: Path) -> list[str]:
    if record.broken is not None:
        raise DataError(f"{path}: the header is broken: a quotation mark in it is never closed.")
    if any(not name.strip() for name in record.fields):
        raise DataError(f"{path}: the header (first line) has a column without a name.")
    if twice := [name for name, count in Counter(record.fields).items() if count > 1]:
        raise DataError(f"{path}: the header names {twice[0]!r} twice.")
    if not _is_text(record.fields):
        raise DataError(f"{path}: the header is not valid UTF-8.")
    return record.fields


def _row(record: _Record, header: list[str], text: str, line: int) -> dict[str, str] | str:
    if record.broken is not None:
        last = line + _lines(text, record.begin, record.broken)
        if last == line:
            return "text stands behind a closing quotation mark; inside quotation marks write it twice"
        one = last == line + 1
        others = f"line {last} is read by itself" if one else f"lines {line + 1} to {last} are read by themselves"
        return (
            f"lines {line} to {last}: a quotation mark opened here is never closed, or closed in another row; {others}"
        )
    if len(record.fields) != len(header):
        return f"has {len(record.fields)} fields, the header has {len(header)}"
    if not _is_text(record.fields):
        return "is not valid UTF-8"
    return dict(zip(header, record.fields, strict=True))


def _known_values(text: str, delimiter: str, begin: int, width: int) -> list[set[str]]:
    """For each column its values of one line; nothing where no row can have more."""
    values: list[set[str]] = [set() for _ in range(width)]
    if '"' not in text:
        return values
    for record in _records(text, delimiter, begin):
        if len(record.fields) == width:
            for column, value in zip(values, record.fields, strict=True):
                if not _has_lines(value):
                    column.add(value)
    return values


def _judged(text: str, record: _Record, delimiter: str, known: list[set[str]]) -> Literal["whole", "doubtful", "glued"]:
    """Whether a stray quotation mark glued a record together from several rows.

    A record of several lines is suspected when each of them would be a row, were quotation marks text. It is glued when
    the lines' values in some column all stand in that column elsewhere, or when there are many lines. Otherwise it may
    be a text of several lines.
    """
    width = len(known)
    if len(record.fields) != width or not any(map(_has_lines, record.fields)):
        return "whole"
    parts = [line.split(delimiter) for line in _LINE_END.split(text[record.begin : record.end].rstrip("\r\n"))]
    many = len(parts) >= _MANY_LINES
    if any(len(part) != width for part in parts):
        return "whole"
    if width == 1:
        return "doubtful" if many else "whole"
    seen = any(all(part[i].strip('"') in known[i] for part in parts) for i in range(width))
    return "glued" if seen or many else "doubtful"


def _has_lines(value: str) -> bool:
    return "\n" in value or "\r" in value


def _lines(text: str, begin: int, end: int) -> int:
    """How many line ends stand between two positions."""
    return sum(1 for _ in _LINE_END.finditer(text, begin, end))


def _line_end(text: str, begin: int) -> int:
    """Where the line of a position ends, its line end included."""
    found = _LINE_END.search(text, begin)
    return found.end() if found else len(text)


def _is_text(fields: list[str]) -> bool:
    return not any("\ud800" <= char <= "\udfff" for value in fields if not value.isascii() for char in value)
