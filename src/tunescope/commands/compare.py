"""``compare``: the spectrum on the user's own data."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from tunescope.base import load_base
from tunescope.commands import fields
from tunescope.commands.cluster import check_ray, helpers_on_ray
from tunescope.commands.command import Command, Part, Result
from tunescope.commands.report import Report
from tunescope.comparison import CompareSettings, Comparison, compare, render_table
from tunescope.comparison.aim import check_objective
from tunescope.data.inputs import has_part
from tunescope.data.reading import read
from tunescope.data.template import default_template
from tunescope.errors import DataError, SettingError
from tunescope.evaluation import default_probes, user_probes
from tunescope.locks import check_free
from tunescope.objectives import SFT, Objective, Reward
from tunescope.objectives.registry import OBJECTIVES
from tunescope.registry import Registry

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class Compared(Result):
    """A comparison.

    Attributes:
        comparison: what was measured, and what to take.
    """

    comparison: Comparison | None = None

    def show(self, console: Console) -> None:
        """The table, the recommendation, and where the report lies."""
        assert self.comparison is not None
        console.print(render_table(self.comparison, console.width))
        console.print(self.comparison.advice.text)
        console.print(f"\nReport: {self.comparison.report}")


class CompareRequest(Command):
    """Train and measure the methods on your data within a budget, and say which one to take.

    With --objective dpo or reward the methods learn from pairs, or from ranked responses, and are measured by how often
    they prefer the better completion; with --judge by what a judge thinks of their own completions.
    """

    choices: ClassVar[Mapping[str, Registry]] = {"objective": OBJECTIVES}

    base: fields.BaseName
    data: fields.Data
    out: fields.HomePath
    """Folder for the bank, comparison.json and report.html."""
    test: str | None = None
    """Test rows. By default a built-in set's own, else a fifth is held out."""
    split: fields.Split = None
    template: fields.Template = None
    style: fields.Style = "auto"
    dtype: fields.Dtype = "auto"
    device: fields.Device = None
    probe: fields.Probe = None
    all_probes: fields.AllProbes = False
    skip_bad: fields.SkipBad = 0
    restart: fields.Restart = False
    finish: bool = False
    """Search no further: measure the best of each method so far on the test rows."""
    join: bool = False
    """Help the comparison that another process leads in --out, by the same call: on another core, or another machine
    that shares the folder."""
    ray: int = Field(0, ge=0)
    """Helpers to start on a ray cluster: the one that RAY_ADDRESS names, or that runs here. Each joins."""
    objective: Objective = Field(default_factory=SFT)
    """What methods are trained for: sft, dpo or reward. With it --help shows the objective's own flags."""
    settings: CompareSettings = Field(default_factory=CompareSettings)
    """Budget, methods and sizes."""

    @classmethod
    def parts(cls, chosen: Mapping[str, Any]) -> dict[str, Part]:
        """The comparison's settings, and the objective's."""
        objective: type[Objective] = OBJECTIVES.load(chosen.get("objective", SFT.name))
        return {"settings": Part(CompareSettings), "objective": Part(objective)}

    def run(self, report: Report | None = None) -> Compared:
        """Train, measure, write the report."""
        report = report or Report()
        if not self.join:
            check_free(self.out)
        self._check_ray()
        check_objective(self.objective, judged=bool(self.settings.judge))
        rewards = isinstance(self.objective, Reward)
        if rewards and (self.probe is not None or self.all_probes):
            name = "probe" if self.probe is not None else "all_probes"
            raise SettingError("CompareRequest", name, "a reward model writes nothing, so there is nothing to forget")
        table = read(self.data, split=self.split, skip_bad=self.skip_bad)
        pattern = self.template or table.default_template
        rows = self.objective.rows(table, pattern, self.skip_bad - len(table.skipped), report.note)
        test_rows = self._test_rows(pattern, report)
        probes = user_probes(self.probe) if self.probe is not None else default_probes(everything=self.all_probes)
        named = ("base", "data", "split", "template", "device")
        base = load_base(self.base, dtype=self.dtype, device=self.device)
        default_template(base.tokenizer, pattern=pattern, style=self.style)  # a style no method could take stops here
        with report.comparing() as watcher:
            found = compare(
                base,
                rows,
                test_rows,
                objective=self.objective,
                out=self.out,
                settings=self.settings,
                pattern=pattern,
                style=self.style,
                probes=None if rewards else probes,
                name=table.name,
                named={name: getattr(self, name) for name in named} | {"skip_bad": self.skip_bad or None},
                restart=self.restart,
                finish=self.finish,
                join=self.join,
                helpers=partial(helpers_on_ray, self, base.device, report.note) if self.ray else nullcontext,
                watcher=watcher,
            )
        return Compared(found.model_dump(mode="json"), self.out, comparison=found)

    def _check_ray(self) -> None:
        if self.ray and (self.join or self.finish):
            other = "join" if self.join else "finish"
            raise SettingError("CompareRequest", "ray", f"helps a search that this process leads: leave --{other} out")
        if self.ray:
            check_ray()

    def _test_rows(self, pattern: str | None, report: Report) -> list[Any] | None:
        """Rows named by ``test``, or the test part of a built-in set."""
        if self.test is not None:
            table = read(self.test, skip_bad=self.skip_bad)
        elif has_part(self.data, "test") and self.split != "test":
            table = read(self.data, split="test")
        else:
            return None
        if not len(table):
            raise DataError(f"{table.path}: no test rows.")
        return self.objective.rows(table, pattern, self.skip_bad - len(table.skipped), report.note)
