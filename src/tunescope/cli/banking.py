"""``bank``: look after customizations at rest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tunescope import bank
from tunescope.cli.output import Output, print_facts
from tunescope.errors import BankError


def list_bank(folder: Path, output: Output) -> None:
    """A line an entry."""
    if not folder.is_dir():
        raise BankError(f"There is no folder {folder}. A bank is made by: tunescope train METHOD --out {folder}/NAME")
    entries = bank.list_entries(folder)
    values = []
    for path in entries:
        try:
            record = bank.read_record(path)
        except BankError as error:  # the others can still be listed
            output.note(str(error))
            continue
        values.append(
            {
                "name": path.name,
                "method": record.method,
                "base": record.base.name,
                "fingerprint": record.base.fingerprint.short,
                "data": record.data.name if record.data else None,
                "score": (record.card or {}).get("score"),
                "size_mb": round(bank.size_mb(path), 3),
            }
        )

    def show(console: Console) -> None:
        if not values:
            console.print(f"{folder} has no entries.", markup=False)
            return
        table = Table(box=None, padding=(0, 2, 0, 0))
        for name in values[0]:
            table.add_column(name)
        for row in values:
            table.add_row(
                *(
                    "" if cell is None else f"{cell:.4g}" if isinstance(cell, float) else str(cell)
                    for cell in row.values()
                )
            )
        console.print(table)

    output.result(values, show)


def show_entry(entry: Path, output: Output) -> None:
    """Everything an entry's record says."""
    record: dict[str, Any] = bank.read_record(entry).model_dump(mode="json")
    flat: dict[str, Any] = {}
    for key, value in record.items():
        if isinstance(value, dict):
            flat |= {f"{key}.{name}": found for name, found in value.items()}
        else:
            flat[key] = value
    output.result(record, lambda console: print_facts(console, flat))
