"""A table of tasks: entries of one base in one folder, one a task, that are made and moved together.

    BANK/TABLE/
      spam/      an entry as any other
      topics/

``BANK/TABLE:spam`` names the entry of a task, wherever an entry can be named. Tasks share nothing here: a table is put
together from entries (``join``) and taken apart (``split``) file by file, so that no stored number changes.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from tunescope import storage
from tunescope.bank.entry import ENTRY, claimed, read_record, save
from tunescope.bank.names import SEPARATOR, TABLE, entry_folder, is_table, list_entries
from tunescope.bank.record import Record
from tunescope.errors import BankError, TunescopeError
from tunescope.methods import Customized

# Beside the separator: what parts names on the command line, what a folder's name cannot hold, and what begins one of
# unfinished work.
_NOT_IN_NAMES = (SEPARATOR, ",", "=", "/", "\\")


def check_task(name: str) -> str:
    """See that a task can be called so.

    Raises:
        TunescopeError: with what is wrong.
    """
    if not name or name != name.strip() or name.startswith(".") or any(mark in name for mark in _NOT_IN_NAMES):
        raise TunescopeError(
            f"A task cannot be called {name!r}: give it a name of letters, digits, - and _ (none of "
            f"{' '.join(_NOT_IN_NAMES)}, no space around it, no dot before it)."
        )
    return name


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
    with claimed(folder, overwrite=overwrite, kind=TABLE), storage.atomic_folder(folder, TABLE) as partial:
        for name, (customized, record) in tasks.items():
            save(customized, partial / check_task(name), record, extra=(extra or {}).get(name))
    return folder


def join(entries: Sequence[str | Path], folder: Path, *, overwrite: bool = False) -> list[str]:
    """Make a table of entries, each a task by its own name; a table among them gives all of its tasks.

    Returns:
        the tasks.

    Raises:
        BankError: no entry there, two of one name, or entries of different bases.
        TunescopeError: ``folder`` is taken, or another run writes there.
    """
    found: dict[str, Path] = {}
    for given in entries:
        path = entry_folder(given)
        for entry in list_entries(path) if is_table(path) else [path]:
            if before := found.get(name := check_task(storage.resolved(entry).name)):
                raise BankError(f"{before} and {entry} have one name, {name}: rename one of the two folders.")
            found[name] = entry
    records = {name: read_record(entry) for name, entry in found.items()}
    first = next(iter(records))
    for name, record in records.items():
        if differing := records[first].base.fingerprint.differences(record.base.fingerprint):
            raise BankError(
                f"{found[first]} and {found[name]} were made for different bases: another {' and '.join(differing)}. "
                "A table has entries of one base."
            )
    with claimed(folder, overwrite=overwrite, kind=TABLE), storage.atomic_folder(folder, TABLE) as partial:
        for name, entry in found.items():
            shutil.copytree(entry, partial / name)
    return list(found)


def split(table: str | Path, bank: str | Path) -> list[Path]:
    """Make a table's tasks entries of a bank, each by its own name. The table stays.

    Raises:
        BankError: no table there.
        TunescopeError: an entry's name is taken, or another run writes there; nothing is written then.
    """
    table, bank = Path(table), Path(bank)
    if not is_table(table):
        raise BankError(f"{table} is no table of tasks. One is made by tunescope train-tasks or tunescope bank join.")
    made = {entry: bank / entry.name for entry in list_entries(table)}
    with ExitStack() as held:
        for out in made.values():
            held.enter_context(claimed(out, overwrite=False))
        for entry, out in made.items():
            with storage.atomic_folder(out, ENTRY) as partial:
                shutil.copytree(entry, partial, ignore=shutil.ignore_patterns(storage.MARKER), dirs_exist_ok=True)
    return list(made.values())
