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
    """Whether a folder was written as a table of tasks (``bank.table``), and may be replaced by one."""
    return storage.is_marked(folder, TABLE)


def holds_entries(folder: Path) -> bool:
    """Whether a folder is no entry and holds some: a bank, or a table, its hidden marker lost on the way or not."""
    return not (folder / RECORD).exists() and bool(list_entries(folder))


def entry_folder(given: str | Path) -> Path:
    """The folder that the user's name of an entry means: ``TABLE:TASK`` is a task's entry in a table.

    Raises:
        UnknownNameError: a task that is not in the table, with those that are.
    """
    path = Path(given)
    table, separator, task = path.name.rpartition(SEPARATOR)
    folder = path.parent / table
    if not (table and separator) or path.exists() or (folder / RECORD).exists():
        return path
    if not (known := [entry.name for entry in list_entries(folder)]):
        return path
    if task not in known:
        raise UnknownNameError(f"task of the table {folder}:", task, known)
    return folder / task


def names_in(bank: str | Path) -> list[str]:
    """What a bank's entries are called in it, those of its tables as ``TABLE:TASK``; none where there is no folder."""
    bank = Path(bank)
    inside = sorted(path for path in bank.iterdir() if not path.name.startswith(".")) if bank.is_dir() else []
    tables = [path for path in inside if not (path / RECORD).exists()]
    tasks = [f"{table.name}{SEPARATOR}{entry.name}" for table in tables for entry in list_entries(table)]
    return [*(entry.name for entry in list_entries(bank)), *tasks]
