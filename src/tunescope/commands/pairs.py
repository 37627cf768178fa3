"""``pairs``: preference pairs from a model's own samples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field

from tunescope.commands import fields
from tunescope.commands.command import Command, Part, Result
from tunescope.commands.report import Report
from tunescope.commands.subject import check_subject, customized_of
from tunescope.data.reading import read
from tunescope.data.rows import to_rows
from tunescope.judging import Samples, load_judge, make_pairs
from tunescope.judging.preference_pairs import check_files, samples_path

# Nothing that pairs are made by.
_LEFT_OUT = frozenset({"choices", "logprobs", "stop", "stop_tokens", "min_new_tokens"})


class PairsRequest(Command):
    """Make pairs of a model's own samples: the best and the worst of each prompt's, as a judge finds them."""

    suffix: ClassVar[str] = ".jsonl"

    entry: fields.OptionalEntry = None
    """Whose completions; none for the base as it is."""
    prompts: str
    """Prompts: a file with a column prompt or messages, a built-in set."""
    judge: fields.Judge
    out: fields.HomePath
    """The .jsonl file of pairs to write."""
    base: fields.OptionalBase = None
    split: fields.Split = None
    template: fields.Template = None
    max_prompts: int | None = Field(None, ge=1)
    """Only this many prompts, from the first."""
    skip_bad: fields.SkipBad = 0
    skip_unjudged: fields.SkipUnjudged = 10
    dtype: fields.Dtype = "auto"
    device: fields.Device = None
    restart: fields.Restart = False
    overwrite: fields.Overwrite = False
    sampling: Samples = Field(default_factory=Samples)
    """How completions are sampled."""

    @classmethod
    def parts(cls, chosen: Mapping[str, Any]) -> dict[str, Part]:
        """The settings of sampling."""
        return {"sampling": Part(Samples, _LEFT_OUT)}

    def run(self, report: Report | None = None) -> Result:
        """Sample, judge and write the pairs, and beside them all samples."""
        report = report or Report()
        check_files(self.out, self.overwrite)
        table = read(self.prompts, split=self.split, skip_bad=self.skip_bad)
        pattern, left = self.template or table.default_template, self.skip_bad - len(table.skipped)
        rows = to_rows(table, pattern, skip_bad=left, need_completion=False, on_note=report.note)[: self.max_prompts]
        check_subject(self.entry, self.base, "Name whose completions to sample")
        customized = customized_of(self.entry, self.base, self.device, self.dtype)
        judge = load_judge(self.judge, customized.origin)
        with report.counting("sampling", len(rows), "prompts") as on_prompt:
            made = make_pairs(
                customized, rows, judge, self.sampling, self.out, skip_unjudged=self.skip_unjudged,
                restart=self.restart, overwrite=self.overwrite, on_prompt=on_prompt,
            )  # fmt: skip
        for note in made.notes:
            report.note(note)
        values = made.summary() | {"file": str(self.out), "samples_file": str(samples_path(self.out))}
        return Result(values, self.out)
