"""Rows into files that ``reading`` reads again: the ending of the name says the format."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tunescope.errors import DataError

_Rows = Sequence[Mapping[str, Any]]


def check_ending(path: Path) -> None:
    """Refuse a name whose ending is no format.

    Raises:
        DataError: with the endings there are.
    """
    if path.suffix.lower() not in _WRITERS:
        raise DataError(f"{path}: cannot tell the format from the name. Let it end in {', '.join(_WRITERS)}.")


def is_flat(path: Path) -> bool:
    """Whether the format of a file has columns only, and no objects in them."""
    return path.suffix.lower() not in _NESTED


def written(rows: _Rows, path: Path) -> bytes:
    """The bytes of a file of rows, in the format that the ending of its name says, in UTF-8.

    Columns stand in the order in which they first appear. CSV and TSV have a header; what is no text there is written
    as JSON, and what is missing as nothing.

    Raises:
        DataError: values that the format cannot hold.
    """
    check_ending(path)
    return _WRITERS[path.suffix.lower()](rows, path)


def _columns(rows: _Rows) -> list[str]:
    return list(dict.fromkeys(column for row in rows for column in row))


def _separated(delimiter: str) -> Callable[[_Rows, Path], bytes]:
    def write(rows: _Rows, _path: Path) -> bytes:
        columns, lines = _columns(rows), _Lines()
        writer = csv.writer(lines, delimiter=delimiter, lineterminator="\r\n")
        writer.writerow(columns)
        writer.writerows([_cell(row.get(column)) for column in columns] for row in rows)
        return "".join(lines).encode()

    return write


class _Lines(list[str]):
    """Lines that end in a line feed: csv quotes a field's carriage returns only where they end its own lines too."""

    def write(self, line: str) -> None:
        """Take a line of csv."""
        self.append(line.removesuffix("\r\n") + "\n")


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else _json_text(value)


def _jsonl(rows: _Rows, _path: Path) -> bytes:
    return "".join(_json_text(row) + "\n" for row in rows).encode()


def _json(rows: _Rows, _path: Path) -> bytes:
    return ("[\n" + ",\n".join(map(_json_text, rows)) + "\n]\n").encode()


def _json_text(value: Any) -> str:
    return json.dumps(_plain(value), ensure_ascii=False, allow_nan=False)


def _plain(value: Any) -> Any:
    """The value in JSON's kinds: null for numbers that JSON has not, text for dates and others that Parquet has."""
    if isinstance(value, Mapping):
        return {str(key): _plain(found) for key, found in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(found) for found in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, str | int | float) else str(value)


def _parquet(rows: _Rows, path: Path) -> bytes:
    import pyarrow
    from pyarrow import parquet

    columns = _columns(rows)
    buffer = io.BytesIO()
    try:
        table = pyarrow.Table.from_pylist([{column: row.get(column) for column in columns} for row in rows])
        parquet.write_table(table, buffer)
    except (pyarrow.ArrowException, OverflowError, TypeError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{path}: Parquet cannot hold these rows ({reason}). Let the name end in .jsonl.") from error
    return buffer.getvalue()


_NESTED = (".jsonl", ".ndjson", ".json")
_WRITERS: dict[str, Callable[[_Rows, Path], bytes]] = {
    ".csv": _separated(","),
    ".tsv": _separated("\t"),
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".json": _json,
    ".parquet": _parquet,
}
