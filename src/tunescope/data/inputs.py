"""What a caller gives as data, made rows: the name of a source, a table, mappings in memory, or rows that are made."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Any, get_args

from tunescope.data import catalog
from tunescope.data.rankings import Preference
from tunescope.data.reading import Table, read, table_of
from tunescope.data.rows import Row, to_rows
from tunescope.errors import DataError

Source = str | Path | Table | Sequence[Mapping[str, Any]]
"""Rows whose columns are yet to be understood."""

ToRows = Callable[[Table, str | None, int, Callable[[str], None]], list[Any]]
"""Table, pattern, how many rows may be bad, callback for notes -> rows or pairs; what ``Objective.rows`` is."""


@dataclass(frozen=True)
class Understood:
    """Rows, and how they came to be.

    Attributes:
        rows: rows or pairs.
        pattern: how columns became rows, if a pattern did.
        name: of the data, short.
        skip_bad: how many more rows may be left out.
        notes: what is worth knowing of how they were read.
    """

    rows: list[Any]
    pattern: str | None
    name: str
    skip_bad: int
    notes: list[str] = field(default_factory=list)


def understand(
    data: Source | Sequence[Row] | Sequence[Preference],
    pattern: str | None = None,
    *,
    skip_bad: int = 0,
    split: str | None = None,
    kind: type[Row] | UnionType = Row,
    convert: ToRows | None = None,
    optional: Collection[str] = (),
) -> Understood:
    """The rows of what was given.

    Args:
        data: what ``read`` takes, a table, mappings from column to value, or rows (pairs) as they are.
        pattern: how columns make prompt and completion; the table's own default where None and it has one.
        skip_bad: how many bad rows may be left out, those that reading a source leaves out included; what a table left
            out when it was read is not counted again.
        split: which part of a built-in set, where ``data`` names one that has it.
        kind: what ``convert`` makes.
        convert: understands the columns; by default into prompts with completions.
        optional: columns that a row may lack though others have them.

    Raises:
        DataError: nothing that can be read, or rows that do not fit; of rows in memory the first of another kind.
    """
    if not isinstance(data, str | Path | Table):
        items = list(data)
        if not items or isinstance(items[0], kind):
            _check_kind(items, kind)
            return Understood(items, pattern, "in memory", skip_bad)
        _check_kind(items, Mapping, kind)
    notes: list[str] = []
    table = _table(data, split, skip_bad, optional)
    pattern = pattern or table.default_template
    left = skip_bad if isinstance(data, Table) else skip_bad - len(table.skipped)
    rows = (convert or _rows)(table, pattern, left, notes.append)
    return Understood(rows, pattern, table.name, left - (len(table) - len(rows)), notes)


def has_part(data: object, split: str) -> bool:
    """Whether data is the name of a built-in set that has this part."""
    return isinstance(data, str) and data in catalog.CATALOG and split in catalog.CATALOG[data].members


def _table(data: Any, split: str | None, skip_bad: int, optional: Collection[str]) -> Table:
    if isinstance(data, Table):
        return data
    if not isinstance(data, str | Path):
        return table_of(data, skip_bad=skip_bad, optional=optional)
    part = split if split is not None and has_part(data, split) else None
    return read(data, split=part, skip_bad=skip_bad, optional=optional)


def _rows(table: Table, pattern: str | None, skip_bad: int, on_note: Callable[[str], None]) -> list[Row]:
    return to_rows(table, pattern, skip_bad=skip_bad, on_note=on_note)


def _check_kind(items: Sequence[Any], *kinds: type | UnionType) -> None:
    """Refuse what is none of the first kind; the others are named as what would do as well."""
    for number, item in enumerate(items, start=1):
        if not isinstance(item, kinds[0]):
            names = " or a ".join(each.__name__ for kind in reversed(kinds) for each in get_args(kind) or (kind,))
            raise DataError(f"Row {number} of the data in memory is a {type(item).__name__}, expected a {names}.")
