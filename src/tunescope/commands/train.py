"""``train METHOD``: customize a base by one method and keep the result."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from tunescope import bank
from tunescope.base import load_base
from tunescope.commands import fields
from tunescope.commands.command import Command, Part, Result
from tunescope.commands.fields import HomePath
from tunescope.commands.processes import together
from tunescope.commands.report import Report
from tunescope.data.reading import read, read_lines
from tunescope.errors import SettingError
from tunescope.methods import Method
from tunescope.methods.registry import METHODS
from tunescope.objectives import SFT, Objective
from tunescope.objectives.registry import OBJECTIVES
from tunescope.registry import Registry
from tunescope.settings import Shown
from tunescope.team import this_team
from tunescope.training import TrainSettings, train
from tunescope.training.start import pattern_of

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class TrainResult(Result):
    """What training leaves."""

    labels: tuple[str, ...] | None = None

    def show(self, console: Console) -> None:
        """The measurements, and what to do next."""
        super().show(console)
        if self.labels:
            entry = shlex.quote(str(self.path))
            console.print(
                f"Answer new rows: tunescope predict {entry} --data new.csv --out answers.csv",
                markup=False,
                soft_wrap=True,
            )


class TrainRequest(Command):
    """Customize a base by one method and keep the result."""

    choices: ClassVar[Mapping[str, Registry]] = {"method": METHODS, "objective": OBJECTIVES}

    method: Method
    """How to customize; its settings are flags of their own."""
    base: fields.BaseName
    data: fields.Data
    out: fields.EntryOut
    objective: Objective = Field(default_factory=SFT)
    """What to train it for. With it --help shows the objective's own flags."""
    validation: str | None = None
    """Rows that are measured every so often and never learned."""
    split: fields.Split = None
    lines: fields.Lines = None
    template: fields.Template = None
    style: fields.Style = "auto"
    skip_bad: fields.SkipBad = 0
    dtype: fields.Dtype = "auto"
    device: fields.Device = None
    processes: fields.Processes = 1
    start: Annotated[HomePath | None, Shown("BANK/NAME")] = Field(None, alias="from")
    """An entry to train on top of. It stays as it is."""
    continued: Annotated[HomePath | None, Shown("BANK/NAME")] = Field(None, alias="continue")
    """An entry of this method whose own tensors to train on."""
    restart: fields.Restart = False
    overwrite: fields.Overwrite = False
    settings: TrainSettings = Field(default_factory=TrainSettings)
    """Of the loop."""

    @classmethod
    def parts(cls, chosen: Mapping[str, Any]) -> dict[str, Part]:
        """The method's, the objective's and the loop's settings. A method that trains nothing has a seed alone."""
        method: type[Method] = METHODS.load(chosen["method"]) if "method" in chosen else Method
        objective: type[Objective] = OBJECTIVES.load(chosen.get("objective", SFT.name))
        idle = method.trains == "nothing"
        return {
            "method": Part(method),
            "objective": Part(objective),
            "settings": Part(TrainSettings, frozenset(_MEANT_FOR_TRAINING) if idle else frozenset()),
        }

    @classmethod
    def _refuse(cls, name: str, chosen: Mapping[str, Any], known: Any) -> None:
        method = chosen.get("method")
        if name in _MEANT_FOR_TRAINING and method is not None:
            raise SettingError(cls.__name__, name, f"{method} trains nothing, so it has no meaning: leave it out")
        super()._refuse(name, chosen, known)

    def run(self, report: Report | None = None) -> TrainResult:
        """Train, and write the entry."""
        with together(self, report or Report()) as own:
            return self.work(own)

    def work(self, report: Report) -> TrainResult:
        """What each process does."""
        bank.check_free(self.out, overwrite=self.overwrite)
        table = read(self.data, split=self.split, skip_bad=self.skip_bad, optional=self.objective.optional)
        if self.lines is not None:
            table = table.on_lines(read_lines(self.lines))
        pattern = self.template or pattern_of(self.start or self.continued, self.objective) or table.default_template
        left = self.skip_bad - len(table.skipped)
        rows = self.objective.rows(table, pattern, left, report.note)
        with report.training(self.method.name) as on_step:
            trained = train(
                load_base(self.base, dtype=self.dtype, device=self.device),
                self.method,
                self.objective,
                rows,
                settings=self.settings,
                out=self.out,
                pattern=pattern,
                style=self.style,
                skip_bad=left - (len(table) - len(rows)),
                name=table.name,
                validation=self.validation,
                start=self.start,
                continued=self.continued,
                restart=self.restart,
                overwrite=self.overwrite,
                on_step=on_step,
            )
        for note in trained.notes:
            report.note(note)
        values = trained.summary() if this_team().writes else None
        return TrainResult(values, Path(self.out), labels=trained.record.labels)


# Settings of the loop that say nothing about a method without one: all but the seed, by which few-shot draws.
_MEANT_FOR_TRAINING = set(TrainSettings.model_fields) - {"seed"}
