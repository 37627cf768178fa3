"""``train-tasks METHOD``: customize a base for several tasks at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from tunescope import bank
from tunescope.bank.names import TABLE
from tunescope.base import load_base
from tunescope.commands import fields
from tunescope.commands.command import Command, Part, Result
from tunescope.commands.processes import together
from tunescope.commands.report import Report
from tunescope.data.reading import Table, read
from tunescope.data.rows import reading_notes
from tunescope.errors import TunescopeError, UnknownNameError
from tunescope.methods import Method
from tunescope.methods.registry import METHODS
from tunescope.registry import Registry
from tunescope.settings import Shown
from tunescope.team import this_team
from tunescope.training import TrainSettings, train_tasks
from tunescope.training.tasks import check_trains_tasks

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class TableResult(Result):
    """What training left of each task."""

    def show(self, console: Console) -> None:
        """A line a task, then how to use one."""
        tasks = self.values["tasks"]
        runs = {"all tasks together": next(iter(tasks.values()))} if self.values["shared"] else tasks
        for name, own in runs.items():
            console.print(f"{name}: {own['steps']} steps, loss {own['loss']:.4g}", markup=False, soft_wrap=True)
        name = next(iter(tasks))
        console.print(f"Answer by a task: tunescope generate {self.path}:{name} PROMPT", markup=False, soft_wrap=True)


class TrainTasksRequest(Command):
    """Customize a base for several tasks at once, and keep a table of entries, one a task.

    P-tuning's tasks share one encoder, which predicts the virtual tokens of each from its name and is dropped at the
    end; for all other methods tasks share nothing, and each becomes what it would become alone.
    """

    choices: ClassVar[Mapping[str, Registry]] = {"method": METHODS}

    method: Method
    """How to customize; its settings are flags of their own."""
    base: fields.BaseName
    out: Annotated[fields.HomePath, Shown("BANK/TABLE")]
    """The table to write. BANK/TABLE:TASK names a task's entry in it."""
    task: Annotated[tuple[str, ...], Shown("NAME=DATA", repeated=True)] = ()
    """A task and its rows: spam=sms-spam, or a file. Repeatable."""
    data: str | None = None
    """In place of --task: rows of all tasks in one file, as tunescope mix writes them."""
    task_column: str | None = None
    """The column of --data that names a row's task."""
    template: fields.Template = None
    task_template: Annotated[tuple[str, ...], Shown("NAME=TEMPLATE", repeated=True, escapes=True)] = ()
    """The template of one task, in place of --template. Repeatable."""
    style: fields.Style = "auto"
    skip_bad: int = Field(0, ge=0)
    """How many bad rows of each task may be left out."""
    dtype: fields.Dtype = "auto"
    device: fields.Device = None
    processes: fields.Processes = 1
    restart: fields.Restart = False
    overwrite: fields.Overwrite = False
    settings: TrainSettings = Field(default_factory=TrainSettings)
    """Of the loop."""

    @classmethod
    def parts(cls, chosen: Mapping[str, Any]) -> dict[str, Part]:
        """The method's and the loop's settings. A task's name is the method's, too."""
        method: type[Method] = METHODS.load(chosen["method"]) if "method" in chosen else Method
        return {
            "method": Part(method, frozenset({"task"})),
            "settings": Part(TrainSettings, frozenset({"validate_every"})),
        }

    def run(self, report: Report | None = None) -> TableResult:
        """Train, and write the table."""
        check_trains_tasks(self.method)
        with together(self, report or Report()) as own:
            return self.work(own)

    def work(self, report: Report) -> TableResult:
        """What each process does."""
        with bank.claimed(self.out, overwrite=self.overwrite, kind=TABLE):
            tables = self._tables(report)
            patterns = self._patterns(tables)
            base = load_base(self.base, dtype=self.dtype, device=self.device)
            with report.training(f"{self.method.name}, {len(tables)} tasks") as on_step:
                trained = train_tasks(
                    base,
                    self.method,
                    tables,
                    settings=self.settings,
                    out=self.out,
                    style=self.style,
                    patterns=patterns,
                    skip_bad=self.skip_bad,
                    restart=self.restart,
                    overwrite=self.overwrite,
                    on_step=on_step,
                )
        for name, each in trained.items():
            for note in each.notes:
                report.note(f"{name}: {note}")
        results = [each.result for each in trained.values()]
        values = {
            "path": str(self.out),
            "shared": results[0] is results[1],
            "tasks": {name: each.summary() for name, each in trained.items()},
        }
        return TableResult(values if this_team().writes else None, Path(self.out))

    def _tables(self, report: Report) -> dict[str, Table]:
        """The rows of each task."""
        if bool(self.task) == (self.data is not None) or (self.data is None) != (self.task_column is None):
            raise TunescopeError(
                "Name the tasks by --task NAME=DATA, several times, or by --data FILE with --task-column COLUMN."
            )
        if self.data is not None:
            whole = read(self.data, skip_bad=self.skip_bad)
            for note in reading_notes(whole, 0):
                report.note(f"{whole.name}: {note}")
            return whole.by_value(str(self.task_column))
        named = _by_name("--task", self.task, "spam=sms-spam")
        return {name: read(data, skip_bad=self.skip_bad) for name, data in named.items()}

    def _patterns(self, tables: Mapping[str, Table]) -> dict[str, str | None]:
        """How the columns of each task become rows."""
        own = _by_name("--task-template", self.task_template, "spam='{text} {label}'")
        if unknown := sorted(set(own) - set(tables)):
            raise UnknownNameError("task (--task-template)", unknown[0], tables)
        return {name: own.get(name) or self.template or table.default_template for name, table in tables.items()}


def _by_name(flag: str, given: Sequence[str], example: str) -> dict[str, str]:
    """What stands behind ``NAME=``, by name.

    Raises:
        TunescopeError: no name, nothing behind it, or a name twice.
    """
    found: dict[str, str] = {}
    for each in given:
        name, separator, value = each.partition("=")
        if not (name and separator and value):
            raise TunescopeError(f"{flag} {each}: expected a name and what it is for, such as {example}.")
        if name in found:
            raise TunescopeError(f"{flag} {name} is given twice: give each task one, and a name of its own.")
        found[name] = value
    return found
