"""``annotate``: attributes for rows that have none."""

from __future__ import annotations

import time
from typing import Annotated, Any, ClassVar

from tunescope import bank
from tunescope.base import load_base
from tunescope.commands import fields
from tunescope.commands.command import Command, Result
from tunescope.commands.report import Report
from tunescope.commands.subject import customized_of
from tunescope.data.reading import read
from tunescope.errors import SettingError, TunescopeError
from tunescope.judging.annotation import Annotator, AttributeModel, Measures, annotate_file, check_out
from tunescope.settings import Shown


class AnnotateRequest(Command):
    """Label rows with attributes, such as quality or verbosity: by an attribute model, by functions, or both.

    The rows need a prompt and a completion. They are written with all their columns and, behind these, one for each
    attribute, a whole number. A call that was stopped goes on when it is made again.
    """

    suffix: ClassVar[str] = ".jsonl"

    entry: fields.OptionalEntry = None
    """An entry trained with --objective attributes."""
    data: fields.Data
    out: fields.HomePath
    """File to write: .csv, .tsv, .jsonl, .json or .parquet."""
    by: Annotated[tuple[str, ...], Shown("NAME=JUDGE", repeated=True)] = ()
    """An attribute and who measures it: verbosity=module:function, or another judge. Repeatable."""
    low: int = 0
    """The least value of --by's attributes; what is measured is rounded, and cut to the range."""
    high: int = 4
    """The greatest value of --by's attributes."""
    base: fields.OptionalBase = None
    split: fields.Split = None
    template: fields.Template = None
    dtype: fields.Dtype = "auto"
    device: fields.Device = None
    restart: fields.Restart = False
    overwrite: fields.Overwrite = False

    def run(self, report: Report | None = None) -> Result:
        """Label, and say how many rows have each value."""
        report = report or Report()
        if self.entry is None and not self.by:
            raise TunescopeError("Say who labels: name an attribute model (BANK/NAME), or functions with --by.")
        if not self.by and (given := sorted({"low", "high"} & self.model_fields_set)):
            raise SettingError("AnnotateRequest", given[0], "is of --by's attributes, and there are none: leave it out")
        if self.high <= self.low:
            raise TunescopeError(f"--high is {self.high}, expected more than --low, {self.low}.")
        check_out(self.out, self.overwrite)
        table = read(self.data, split=self.split)
        annotators: list[Annotator] = []
        pattern = self.template or table.default_template
        if self.entry is not None:
            record = bank.read_record(self.entry)
            pattern = self.template or record.template.pattern or table.default_template
            customized = customized_of(self.entry, self.base, self.device, self.dtype)
            annotators.append(AttributeModel(customized, record, str(self.entry)))
            base = customized.base
        elif self.base is not None:
            base = load_base(self.base, dtype=self.dtype, device=self.device)
        else:
            raise TunescopeError("Name the base with --base: judges may count its tokens.")
        if self.by:
            annotators.append(Measures(self.by, base, self.low, self.high))
        started = time.perf_counter()
        with report.counting("labelling", len(table), "rows") as on_done:
            found = annotate_file(
                annotators, table, self.out, pattern=pattern,
                overwrite=self.overwrite, restart=self.restart, on_note=report.note, on_done=on_done,
            )  # fmt: skip
        counts = found.counts()
        values: dict[str, Any] = {
            "rows": len(found.values),
            "resumed": found.resumed,
            "attributes": {name: {str(level): count for level, count in own.items()} for name, own in counts.items()},
            "seconds": round(time.perf_counter() - started, 1),
            "file": str(self.out),
        }
        shown = {name: value for name, value in values.items() if name != "attributes"}
        shown["resumed"] = values["resumed"] or None
        for name, own in counts.items():
            shown[name] = ", ".join(f"{level}: {count}" for level, count in own.items())
        return Result(values, self.out, shown)
