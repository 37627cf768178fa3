"""``bank join`` and ``bank split``: tables of tasks, put together and taken apart."""

from __future__ import annotations

from typing import Annotated

from tunescope.commands import fields
from tunescope.commands.command import Command, Result
from tunescope.commands.report import Report
from tunescope.settings import Shown


class JoinRequest(Command):
    """Make a table of entries, one a task: BANK/TABLE:TASK names each. No stored number changes.

    A table among the entries gives all of its tasks, so one more task is: join TABLE NEW --out TABLE2.
    """

    entries: Annotated[tuple[fields.HomePath, ...], Shown("BANK/NAME...", positional=True)]
    """Entries of one base. Each one's own name is its task's."""
    out: Annotated[fields.HomePath, Shown("BANK/TABLE")]
    """The table to write."""
    overwrite: fields.Overwrite = False

    def run(self, report: Report | None = None) -> Result:
        """Copy the entries into a table."""
        from tunescope import bank

        tasks = bank.join(self.entries, self.out, overwrite=self.overwrite)
        return Result({"path": str(self.out), "tasks": tasks}, self.out)


class SplitRequest(Command):
    """Make a table's tasks entries of a bank, each by its own name. The table stays."""

    table: Annotated[fields.HomePath, Shown("BANK/TABLE", positional=True)]
    """A table of tasks."""
    out: Annotated[fields.HomePath, Shown("BANK")]
    """The bank to write the entries into."""

    def run(self, report: Report | None = None) -> Result:
        """Copy the tasks into a bank."""
        from tunescope import bank

        made = bank.split(self.table, self.out)
        return Result({"path": str(self.out), "entries": [str(path) for path in made]}, self.out)
