"""What entries are called: their folder in a bank, or ``TABLE:TASK`` for a task's entry in a table."""

from __future__ import annotations

from pathlib import Path

from tunescope import storage
from tunescope.errors import UnknownNameError

RECORD = "customization.json"
TABLE = storage.Kind("table of tasks")
SEPARATOR = ":"


def list_entries(bank: str | Path) -> list[Path]:
    """The entries of a bank folder, by name."""
    return sorted(path.parent for path in Path(bank).glob(f"*/{RECORD}") if not path.parent.name.startswith("."))


def is_table(folder: Path) -> bool:
    """Whether a folder is a table of tasks (``bank.table``)."""
    return storage.is_marked(folder, TABLE)


def entry_folder(given: str | Path) -> Path:
    """The folder that the user's name of an entry means: ``TABLE:TASK`` is a task's entry in a table.

    Raises:
        UnknownNameError: a task that is not in the table, with those that are.
    """
    path = Path(given)
    table, separator, task = path.name.rpartition(SEPARATOR)
    if not (table and separator) or path.exists() or not is_table(path.with_name(table)):
        return path
    folder = path.with_name(table)
    if task not in (known := [entry.name for entry in list_entries(folder)]):
        raise UnknownNameError(f"task of the table {folder}:", task, known)
    return folder / task


def names_in(bank: str | Path) -> list[str]:
    """What a bank's entries are called in it, those of its tables as ``TABLE:TASK``."""
    tables = sorted(path for path in Path(bank).iterdir() if path.is_dir() and is_table(path))
    tasks = [f"{table.name}{SEPARATOR}{entry.name}" for table in tables for entry in list_entries(table)]
    return [*(entry.name for entry in list_entries(bank)), *tasks]
