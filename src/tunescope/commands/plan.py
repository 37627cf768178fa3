"""``plan``: will it fit, and how long will it take."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import Field
from rich.table import Table

from tunescope.base import load_base
from tunescope.base.device import DTYPES
from tunescope.commands import fields
from tunescope.commands.command import Command, Part, Result
from tunescope.commands.report import Report
from tunescope.comparison.formatting import count, duration, megabytes
from tunescope.data.reading import read
from tunescope.errors import TunescopeError
from tunescope.planning import Plan, Planner, PlanSettings, gpu, this_machine
from tunescope.planning.calibration import calibrate
from tunescope.training import TrainSettings
from tunescope.training.prepared import Reading

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class Planned(Result):
    """A plan.

    Attributes:
        plan: of every method and objective.
        line: a command that trains, but for the method, the objective and the entry's name.
    """

    plan: Plan | None = None
    line: str = ""

    def show(self, console: Console) -> None:
        """A table, what to do about what does not fit, and a line to copy."""
        assert self.plan is not None
        plan = self.plan
        room = "free" if plan.machine.measured else "in all"
        room += f" for each of {plan.processes} processes" if plan.processes > 1 else ""
        console.print(
            f"{plan.base}: {count(plan.parameters)} parameters, {megabytes(plan.weights_mb)} in {plan.dtype}. "
            f"{plan.machine.name}: {megabytes(plan.machine.memory_mb)} {room}. "
            f"Learns from {plan.data}.",
            markup=False,
        )
        table = Table(box=None, padding=(0, 2, 0, 0))
        for name in ("method", "objective"):
            table.add_column(name)
        for name in ("trained", "beside the base", "time", "fits"):
            table.add_column(name, justify="right")
        for row in plan.rows:
            sizes = (count(row.trainable_parameters), megabytes(row.peak_memory_mb), duration(row.seconds))
            table.add_row(row.method, row.objective, *sizes, "yes" if row.fits else "no")
        console.print(table)
        remedies: dict[str, list[str]] = {}
        for row in plan.rows:
            if row.remedy is not None:
                what = f"{row.remedy} ({row.options})" if row.options else row.remedy
                remedies.setdefault(what, []).append(f"{row.method} for {row.objective}")
        for what, rows in remedies.items():
            console.print(f"{', '.join(rows)}: {what}.", markup=False)
        if not plan.machine.measured:
            console.print("Seconds are from the data sheet, of which half is reached as a rule.")
        console.print(self.line, markup=False, soft_wrap=True)


class PlanRequest(Command):
    """Say for every method and objective whether it fits and how long it takes, before any compute."""

    base: fields.BaseName
    data: str | None = None
    """Rows to learn from: a file, a built-in set or a hub id. Or give --length."""
    gpu: str | None = None
    """A GPU to plan for, by name: h100, a100, l4, rtx-4090 ... By default this machine."""
    memory: float | None = Field(None, gt=0)
    """Memory that may be taken, in GB. By default what is free here, or all of the GPU's."""
    measure: bool = False
    """Take a few steps on this machine and set the planned seconds right by them."""
    split: fields.Split = None
    template: fields.Template = None
    style: fields.Style = "auto"
    skip_bad: fields.SkipBad = 0
    dtype: fields.Dtype = "auto"
    device: fields.Device = None
    settings: PlanSettings = Field(default_factory=PlanSettings)
    """What to plan."""
    training: TrainSettings = Field(default_factory=TrainSettings)
    """Of the loop."""

    @classmethod
    def parts(cls, chosen: Mapping[str, Any]) -> dict[str, Part]:
        """What to plan, and the loop's settings that change memory or time."""
        kept = {"max_steps", "epochs", "batch_size", "accumulate", "recompute", "max_length"}
        return {
            "settings": Part(PlanSettings),
            "training": Part(TrainSettings, frozenset(set(TrainSettings.model_fields) - kept)),
        }

    def run(self, report: Report | None = None) -> Planned:
        """Read the configuration and the rows, and count."""
        report = report or Report()
        self._check()
        machine = gpu(self.gpu) if self.gpu is not None else this_machine(self.device)
        if self.memory is not None:
            machine = machine.with_memory(self.memory * 1e3)
        table = None if self.data is None else read(self.data, split=self.split, skip_bad=self.skip_bad)
        planner = Planner.of(
            self.base,
            table,
            settings=self.settings,
            training=self.training,
            machine=machine,
            dtype=None if self.dtype == "auto" else DTYPES[self.dtype],
            how=Reading(self.template, self.style, self.skip_bad),
        )
        cells = planner.cells()
        ratio = self._measured(planner, report) if self.measure else 1.0
        with report.counting("planning", len(cells), "runs") as done:
            plan = planner.plan(ratio, done)
        data = f" --data {shlex.quote(self.data)}" if self.data is not None else " --data DATA"
        several = f" --processes {self.settings.processes}" if self.settings.processes > 1 else ""
        base = shlex.quote(self.base)
        line = f"tunescope train METHOD --objective OBJECTIVE --base {base}{data}{several} --out BANK/NAME"
        return Planned(plan.summary(), plan=plan, line=line)

    def _check(self) -> None:
        if self.measure and self.gpu is not None:
            raise TunescopeError("--measure takes steps on this machine, and --gpu plans for another: leave one out.")
        if self.measure and self.settings.processes > 1:
            raise TunescopeError("--measure takes steps in one process: leave it or --processes out.")
        if self.gpu is not None and self.device is not None:
            raise TunescopeError("--device is one of this machine's, and --gpu plans for another: leave one out.")

    def _measured(self, planner: Planner, report: Report) -> float:
        """Measured seconds over planned ones, of the first of the runs that learns from its rows as they are."""
        found = [cell for cell in planner.cells() if cell[1].number_of_rounds == 1]
        if not found:
            raise TunescopeError("--measure takes steps of sft, dpo, reward or attributes: plan one of these, too.")
        with report.working("measuring"):
            base = load_base(self.base, dtype=self.dtype, device=self.device)
            return calibrate(base, planner.setting, *found[0])
