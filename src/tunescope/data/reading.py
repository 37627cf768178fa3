"""Rows from files, from the catalog of built-in sets and from the Hugging Face hub, all checked alike.

Strict: whatever cannot be a row is reported with its line and the reason, all of it at once, and nothing is guessed.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from tunescope.archives import without_secrets
from tunescope.data import catalog
from tunescope.data.charsets import decode
from tunescope.data.json_rows import Parsed, json_document, json_lines
from tunescope.data.separated import separated
from tunescope.errors import DataError, TunescopeError, UnknownNameError
from tunescope.storage import cache_folder, disk_errors

_SHOWN = 20  # bad rows listed in one message
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(:[\w.-]+)?")


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used: its line, from 1 (for Parquet and the hub: its number), and why."""

    line: int
    reason: str


@dataclass(frozen=True)
class Table:
    """Rows as read, before their columns are understood.

    Attributes:
        rows: one mapping from column to value each. CSV values are text.
        lines: for each row the line of the file on which it starts, from 1; for Parquet and the hub its number.
        name: short, for people: the file's name, or the set's with its split.
        path: where the rows come from, for messages.
        sha256: of the file's bytes; of the rows as JSON for a set from the hub.
        columns: the columns that every row has, in the order of the first row.
        skipped: rows left out because ``skip_bad`` allowed it.
        notes: how the file was read where it is not what its name promises (encoding, delimiter), in words.
        default_template: how the catalog makes prompts of such rows.
        unmended: ``rows`` as they stand in the file, where whole numbers in them were mended; None where none were.
    """

    rows: list[dict[str, Any]]
    lines: list[int]
    name: str
    path: str
    sha256: str
    columns: tuple[str, ...]
    skipped: list[BadRow] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    default_template: str | None = None
    unmended: list[dict[str, Any]] | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def unread(self, known: Collection[str]) -> list[str]:
        """Notes on columns beside the ``known`` ones, also of those that only some rows have; empty for none."""
        others = sorted({column for row in self.rows for column in row} - set(known))
        return [f"not read: {', '.join(others)}"] if others else []

    def on_lines(self, lines: Collection[int]) -> Table:
        """The rows on these lines, in the order of the table.

        Raises:
            DataError: a line on which no row starts.
        """
        wanted = set(lines)
        if missing := sorted(wanted - set(self.lines)):
            others = f" and {len(missing) - 1} others" if len(missing) > 1 else ""
            raise DataError(f"{self.path} has no row on line {missing[0]}{others}: the numbers are of other data.")
        return self._chosen([i for i, line in enumerate(self.lines) if line in wanted])

    def by_value(self, column: str) -> dict[str, Table]:
        """The rows of each value of a column, which is left out of them; values in the order they come in.

        Raises:
            DataError: no such column, or a row without a text in it.
        """
        if column not in self.columns:
            raise DataError(f"{self.path} has no column {column!r}. Its columns: {', '.join(self.columns)}.")
        indices: dict[str, list[int]] = {}
        for index, row in enumerate(self.rows):
            if not isinstance(value := row[column], str) or not value:
                raise DataError(f"{self.path}, line {self.lines[index]}: {column} is {value!r}, expected a name.")
            indices.setdefault(value, []).append(index)
        return {value: self._some(column, value, chosen) for value, chosen in indices.items()}

    def _some(self, column: str, value: str, chosen: Sequence[int]) -> Table:
        return replace(
            self._chosen(chosen),
            rows=[{name: cell for name, cell in self.rows[i].items() if name != column} for i in chosen],
            name=f"{self.name} ({value})",
            columns=tuple(name for name in self.columns if name != column),
            skipped=[],
            notes=[],
        )

    def _chosen(self, indices: Sequence[int]) -> Table:
        return replace(
            self,
            rows=[self.rows[i] for i in indices],
            lines=[self.lines[i] for i in indices],
            unmended=None if self.unmended is None else [self.unmended[i] for i in indices],
        )


_Reader = Callable[[bytes, Path, list[str]], Parsed]  # a file's bytes and its path to rows; notes are added to


def read_lines(path: Path) -> list[int]:
    """Line numbers from a file with one on each line, for ``Table.on_lines``.

    Raises:
        DataError: a file that cannot be read, an empty one, or a line that is no number from 1 on.
    """
    try:
        texts = path.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: {getattr(error, 'strerror', None) or 'not UTF-8 text'}.") from None
    for text in texts:
        if not text.isdecimal() or not int(text):
            raise DataError(f"{path}: {text[:40]!r} is no line number; expected one from 1 on a line.")
    if not texts:
        raise DataError(f"{path} names no line.")
    return [int(text) for text in texts]


def read(source: str | Path, *, split: str | None = None, skip_bad: int = 0, optional: Collection[str] = ()) -> Table:
    """Read all rows of a source.

    Args:
        source: a ``.jsonl``, ``.json``, ``.csv``, ``.tsv`` or ``.parquet`` file, the name of a built-in set, or a hub
            id ``organization/name``, with ``:subset`` behind it where the set has several. What exists on the disk
            comes first.
        split: which part of a set; by default ``train``, or its first. Files have none.
        skip_bad: how many bad rows may be left out.
        optional: columns that a row may lack though others have them.

    Raises:
        DataError: nothing to read, more bad rows than allowed (the first 20 are listed), or an unknown kind of file.
        UnknownNameError: a plain word that is neither a file nor built in.
        TunescopeError: a download failed or the disk is full.
    """
    path = Path(os.path.expanduser(source))  # noqa: PTH111 (pathlib's raises for an unknown user)
    name = str(source)
    if path.is_dir():
        raise DataError(f"{path} is a folder. Name one file in it: {_some_names(path)}.")
    if path.exists():
        if split is not None:
            raise DataError(f"{path} is one file and has no splits, so split {split!r} cannot be taken from it.")
        return _from_file(path, skip_bad, optional)
    if name in catalog.CATALOG:
        return _from_catalog(name, split)
    if path.suffix.lower() in _READERS or name.startswith((".", "~", "/")):
        raise DataError(f"There is no file {path}.{_near(path)}")
    if _HUB_ID.fullmatch(name):
        return _from_hub(name, split, skip_bad)
    raise UnknownNameError("data (neither a file, a hub id organization/name nor built in)", name, catalog.CATALOG)


def table_of(rows: Sequence[Mapping[str, Any]], *, skip_bad: int = 0, optional: Collection[str] = ()) -> Table:
    """A table of rows in memory, one mapping from column to value each; checked as those of a file are.

    Raises:
        DataError: no rows, or more bad ones than allowed.
    """
    digest = hashlib.sha256(json.dumps([dict(row) for row in rows], default=str).encode()).hexdigest()
    parsed: Parsed = iter(enumerate((dict(row) or "is an empty object" for row in rows), start=1))
    return _checked(parsed, skip_bad, [], optional, name="rows", path="rows", sha256=digest)


def check_bad(path: str | Path, bad: Sequence[BadRow], skip_bad: int) -> None:
    """Stop when there are more bad rows than allowed.

    Raises:
        DataError: with the line and reason of the first 20.
    """
    if len(bad) <= skip_bad:
        return
    listed = "\n".join(f"  line {row.line}: {row.reason}" for row in bad[:_SHOWN])
    more = f"\n  and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
    rows = "1 bad row" if len(bad) == 1 else f"{len(bad)} bad rows"
    raise DataError(
        f"{path}: {rows}.\n{listed}{more}\nMend the data, or leave such rows out with --skip-bad {len(bad)}."
    )


def read_each(path: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """The rows of a JSON-lines file one by one, with their lines; of a row that cannot be read, why.

    For rows that have nothing to do with each other, where ``read`` wants a table.

    Raises:
        DataError: a file that cannot be read, or is no .jsonl file.
    """
    if path.suffix.lower() != ".jsonl":
        raise DataError(f"{path}: expected a .jsonl file, with one JSON object a line.")
    return json_lines(_content(path).decode("utf-8-sig", "surrogateescape"), path, [])


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error


def _from_file(path: Path, skip_bad: int, optional: Collection[str]) -> Table:
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path}: cannot tell the format from {path.suffix or 'a name without ending'!r}. "
                        f"Known: {', '.join(_READERS)}.")  # fmt: skip
    content = _content(path)
    digest = hashlib.sha256(content).hexdigest()
    notes: list[str] = []
    parsed = reader(content, path, notes)
    return _checked(parsed, skip_bad, notes, optional, name=path.name, path=str(path), sha256=digest)


def _from_catalog(name: str, split: str | None) -> Table:
    entry = catalog.find(name)
    file, split = catalog.member_path(name, split)
    content = file.read_bytes()
    try:
        rows = entry.reader(content.decode())
    except (ValueError, LookupError) as error:
        raise DataError(f"{file} is damaged ({error}). Delete it; it is downloaded again.") from error
    taken = [
        number for number, row in enumerate(rows) if entry.held_out is None or entry.held_out(row) == (split == "test")
    ]
    return Table(
        rows=[rows[number] for number in taken],
        lines=[entry.first_line + number for number in taken],
        name=f"{name} ({split})",
        path=f"{name} ({split})",
        sha256=hashlib.sha256(content).hexdigest(),
        columns=tuple(rows[0]),
        default_template=entry.template,
    )


def _checked(
    parsed: Parsed,
    skip_bad: int,
    notes: list[str],
    optional: Collection[str] = (),
    *,
    name: str,
    path: str,
    sha256: str,
) -> Table:
    """Sort out the bad rows; among them those without a column that the greater part of the rows has, ``optional``
    ones aside.

    The commonest set of columns is the measure, not the first row's, so that one odd first row does not condemn all
    the others.
    """
    good: list[tuple[int, dict[str, Any]]] = []
    bad: list[BadRow] = []
    for line, row in parsed:
        if isinstance(row, str):
            bad.append(BadRow(line, row))
        else:
            good.append((line, row))
    if good:
        expected = Counter(frozenset(row.keys() - set(optional)) for _, row in good).most_common(1)[0][0]
        for line, row in good:
            if missing := expected - row.keys():
                bad.append(BadRow(line, f"has no {', '.join(sorted(missing))}; its columns are {', '.join(row)}"))
        good = [(line, row) for line, row in good if expected <= row.keys()]
    bad.sort(key=lambda row: row.line)
    check_bad(path, bad, skip_bad)
    if not good:
        raise DataError(f"{path} holds no rows.")
    columns = tuple(column for column in good[0][1] if all(column in row for _, row in good))
    rows = [row for _, row in good]
    unmended = [dict(row) for row in rows]
    mended = _mend_integers(rows, columns)
    return Table(
        rows, [line for line, _ in good], name, path, sha256, columns, bad, [*notes, *mended],
        unmended=unmended if mended else None,
    )  # fmt: skip


def _mend_integers(rows: list[dict[str, Any]], columns: Sequence[str]) -> list[str]:
    """Make integers of whole numbers that pandas wrote as 1.0 because others of the column are missing.

    Returns:
        Notes on such columns.
    """
    mended = []
    for column in columns:
        present = [row[column] for row in rows if not _is_missing(row[column])]
        if len(present) in (0, len(rows)) or not all(map(_is_whole, present)):
            continue
        if len({isinstance(value, str) for value in present}) > 1 or all(type(value) is int for value in present):
            continue
        for row in rows:
            value = row[column]
            row[column] = None if _is_missing(value) else int(float(value))
        mended.append(f"{column}: whole numbers beside missing values are read as integers (1.0 as 1)")
    return mended


def _is_missing(value: Any) -> bool:
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def _is_whole(value: Any) -> bool:
    if isinstance(value, str):
        return re.fullmatch(r"-?\d{1,15}\.0", value, re.ASCII) is not None
    return type(value) is int or (isinstance(value, float) and value.is_integer() and abs(value) < 2**53)


def _text(reader: Callable[[str, Path, list[str]], Parsed]) -> _Reader:
    return lambda content, path, notes: reader(decode(content, path, notes), path, notes)


def _parquet(content: bytes, path: Path, _notes: list[str]) -> Parsed:
    import pyarrow
    from pyarrow import parquet

    try:
        rows = parquet.read_table(pyarrow.BufferReader(content)).to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{path} is not a readable Parquet file: {reason}") from error
    yield from enumerate(rows, start=1)


def _from_hub(name: str, split: str | None, skip_bad: int) -> Table:
    import datasets

    hub_id, _, subset = name.partition(":")
    try:
        with disk_errors(cache_folder()):
            parts = datasets.load_dataset(hub_id, subset or None)
    except TunescopeError:
        raise
    except Exception as error:  # what the hub, the network and each file format may raise has no common ancestor
        reason = without_secrets((str(error).strip().splitlines() or [type(error).__name__])[0])
        raise DataError(
            f"The hub did not give the data set {name}: {reason} Check the name (organization/name, with :subset "
            f"where it has several), the network and HF_HUB_OFFLINE. Built in: {', '.join(catalog.CATALOG)}."
        ) from None  # whose message may hold a token
    split = split or ("train" if "train" in parts else next(iter(parts)))
    if split not in parts:
        raise DataError(f"{name} has no split {split!r}; it has {', '.join(parts)}.")
    return _hub_table(parts[split], f"{name} ({split})", skip_bad)


def _hub_table(part: Any, title: str, skip_bad: int) -> Table:
    rows = part.to_list()
    for column, feature in part.features.items():
        if hasattr(feature, "int2str"):  # labels are stored as numbers; their names say more to a language model
            for row in rows:
                value = row[column]
                row[column] = None if value is None or value < 0 else feature.int2str(value)
    digest = hashlib.sha256(json.dumps(rows, default=str).encode()).hexdigest()
    return _checked(iter(enumerate(rows, start=1)), skip_bad, [], name=title, path=title, sha256=digest)


def _some_names(folder: Path) -> str:
    names = sorted(entry.name for entry in folder.iterdir() if entry.suffix.lower() in _READERS)
    return ", ".join(names[:5]) or f"it holds none of {', '.join(_READERS)}"


def _near(path: Path) -> str:
    """A suggestion of what stands near a missing path, or nothing."""
    if not path.parent.is_dir():
        return f" Nor is there a folder {path.parent}."
    names = sorted(entry.name for entry in path.parent.iterdir())
    close = get_close_matches(path.name, names, n=2, cutoff=0.5)
    return f" Did you mean {' or '.join(str(path.parent / name) for name in close)}?" if close else ""


_READERS: dict[str, _Reader] = {
    ".jsonl": _text(json_lines),
    ".ndjson": _text(json_lines),
    ".json": _text(json_document),
    ".csv": _text(separated(",")),
    ".tsv": _text(separated("\t")),
    ".parquet": _parquet,
}
