"""A table of tasks: entries of one base in one folder, one a task, that are made and moved together.

    BANK/TABLE/
      spam/      an entry as any other
      topics/

``BANK/TABLE:spam`` names the entry of a task, wherever an entry can be named. Tasks share nothing here: a table is put
together from entries (``join``) and taken apart (``split``) file by file, so that no stored number changes.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tunescope import storage
from tunescope.bank.entry import claimed, copy, read_record, save, writing_card
from tunescope.bank.names import TABLE, entry_folder, holds_entries, list_entries
from tunescope.bank.record import Record
from tunescope.errors import BankError, TunescopeError
from tunescope.methods import Customized

_NAME = re.compile(r"\w[\w.-]{0,63}")


def check_tasks(names: Iterable[str]) -> None:
    """Refuse names that no task can have.

    Raises:
        TunescopeError: one that is no name of a folder everywhere, or two that differ in case only.
    """
    seen: dict[str, str] = {}
    for name in names:
        if not _NAME.fullmatch(name):
            raise TunescopeError(
                f"A task cannot be called {name!r}: give it a name of letters, digits, -, _ and . (64 at most, none of "
                "- and . before it)."
            )
        if (before := seen.setdefault(name.casefold(), name)) != name:
            raise TunescopeError(f"The tasks {before} and {name} differ in case only: rename one.")


def save_table(
    tasks: Mapping[str, tuple[Customized, Record]],
    folder: Path,
    *,
    extra: Mapping[str, dict[str, str]] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a table, all of it or nothing.

    Args:
        tasks: customization and certificate of each, by name.
        folder: the table.
        extra: further text files of a task's entry, by task and file name.
        overwrite: replace a table that is there already.

    Raises:
        TunescopeError: a name that no task can have, a folder that is taken, or another run writes there.
    """
    check_tasks(tasks)
    with _written(folder, overwrite=overwrite) as partial:
        for name, (customized, record) in tasks.items():
            save(customized, partial / name, record, extra=(extra or {}).get(name))
    return folder


def join(entries: Sequence[str | Path], folder: Path, *, overwrite: bool = False) -> list[str]:
    """Make a table of entries, each a task by its own name; a table among them gives all of its tasks.

    Returns:
        the tasks.

    Raises:
        BankError: no entry, a damaged one, two of one name, or entries of different bases.
        TunescopeError: a name that no task can have, ``folder`` is taken or lies in an entry, or another run writes
            there.
    """
    found: dict[str, Path] = {}
    for given in entries:
        path = entry_folder(given)
        for entry in list_entries(path) if holds_entries(path) else [path]:
            name = entry.name if entry.name not in ("", "..") else storage.resolved(entry).name
            if before := found.get(name):
                raise BankError(f"{before} and {entry} have one name, {name}: rename one of the two folders.")
            found[name] = entry
    if not found:
        raise BankError("There is no entry to join: name at least one.")
    check_tasks(found)
    records = {name: read_record(entry) for name, entry in found.items()}
    first = next(iter(records))
    for name, record in records.items():
        if differing := records[first].base.fingerprint.differences(record.base.fingerprint):
            raise BankError(
                f"{found[first]} and {found[name]} were made for different bases: another {' and '.join(differing)}. "
                "A table has entries of one base."
            )
    _check_sources(found.values(), folder)
    with _written(folder, overwrite=overwrite) as partial:
        for name, entry in found.items():
            shutil.copytree(entry, partial / name)
    return list(found)


def split(table: str | Path, bank: str | Path) -> list[Path]:
    """Make a table's tasks entries of a bank, each by its own name. The table stays.

    Raises:
        BankError: no table there, or a damaged one.
        TunescopeError: an entry's name is taken, ``bank`` lies in an entry, or another run writes there; nothing is
            written then.
    """
    table, bank = Path(table), Path(bank)
    if not holds_entries(table):
        raise BankError(f"{table} is no table of tasks. One is made by tunescope train-tasks or tunescope bank join.")
    made = {entry: bank / entry.name for entry in list_entries(table)}
    _check_sources(made, bank)
    with ExitStack() as held:
        for out in made.values():
            held.enter_context(claimed(out, overwrite=False))
        for entry, out in made.items():
            copy(entry, out)
    return list(made.values())


@contextmanager
def _written(folder: Path, *, overwrite: bool) -> Iterator[Path]:
    """A table that is being written, by one writer, while no card of its tasks is."""
    with (
        claimed(folder, overwrite=overwrite, kind=TABLE),
        writing_card(folder),
        storage.atomic_folder(folder, TABLE) as partial,
    ):
        yield partial


def _check_sources(entries: Iterable[Path], out: Path) -> None:
    """Refuse damaged entries, which a copy would make look whole, and copies into what is copied."""
    for entry in entries:
        if damage := storage.broken(entry):
            raise BankError(f"{damage}: damaged or changed since. Copy the entry again or train it again.")
        if storage.resolved(out).is_relative_to(storage.resolved(entry)):
            raise TunescopeError(f"{out} lies in the entry {entry}, which is to be copied. Choose another --out.")
