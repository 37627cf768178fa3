"""``eval``: measure an entry, or a base as it is, on rows it has not seen."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from tunescope.commands import fields
from tunescope.commands.command import Command, Result
from tunescope.commands.report import Report
from tunescope.errors import SettingError, TunescopeError
from tunescope.settings import Shown


class EvalRequest(Command):
    """Measure an entry on rows it has not seen: task, forgetting on and off, latency, cost.

    An entry trained on pairs (dpo, reward) is measured on pairs or ranked responses: accuracy, margin, calibration. A
    reward model scores rows of prompt and completion. An attribute model is measured on rated rows: absolute error and
    rank correlation of each attribute, beside a constant. With --judge an entry's sampled completions of prompts are
    compared with its base's: score, win rate, and how far they moved (KL). With --by or --annotator texts are sampled
    at every value of every attribute, and asked values compared with realized ones. Of a mixture (--data MIXTURE.yaml)
    the unseen tasks are measured, before and after. --data lm-eval:TASK,TASK measures standard benchmarks by the
    lm-evaluation-harness, before and after (with --style chat in the entry's own template).
    """

    entry: fields.OptionalEntry = None
    """An entry of a bank; none for the base as it is."""
    data: fields.Data
    base: fields.OptionalBase = None
    split: fields.Split = None
    template: fields.Template = None
    style: fields.Style = "auto"
    probe: fields.Probe = None
    all_probes: fields.AllProbes = False
    max_rows: int | None = Field(None, ge=1)
    """Most rows, a stratified sample; all by default."""
    generate_rows: int | None = Field(None, ge=0)
    """Rows to generate freely for; all by default."""
    max_new_tokens: int = Field(128, ge=1)
    """Most tokens of a generated text."""
    max_length: int | None = Field(None, ge=2)
    """Most tokens of a row; by default as it was trained."""
    skip_bad: fields.SkipBad = 0
    plot: fields.HomePath | None = None
    """HTML file to draw the calibration in, of an entry measured on pairs."""
    judge: fields.Judge = ()
    by: Annotated[tuple[str, ...], Shown("NAME=JUDGE", repeated=True)] = ()
    """Measure how an entry trained with --steer-columns follows its attributes: an attribute and who measures it in
    sampled texts, as for annotate. Of an attribute model: who is measured beside it. Repeatable."""
    annotator: fields.HomePath | None = None
    """The same by an attribute model, an entry of a bank."""
    against: fields.HomePath | None = None
    """With --judge, and of a mixture: compare with this entry of a bank instead of with the base."""
    n: int = Field(4, ge=1)
    """Completions of each prompt to sample for --judge."""
    skip_unjudged: fields.SkipUnjudged = 10
    device: fields.Device = None

    def run(self, report: Report | None = None) -> Result:
        """Measure, keep the measurements in the entry's record, and give them."""
        from tunescope import bank
        from tunescope.commands.eval_attributes import attributes_of, eval_attributes
        from tunescope.commands.eval_harness import PREFIX, eval_harness
        from tunescope.commands.eval_judged import eval_judged
        from tunescope.commands.eval_pairs import eval_pairs, score_texts
        from tunescope.commands.eval_steering import eval_steering
        from tunescope.commands.eval_task import eval_task
        from tunescope.commands.eval_unseen import eval_unseen
        from tunescope.commands.subject import check_subject
        from tunescope.data.inputs import has_part
        from tunescope.data.rankings import is_preferences
        from tunescope.data.reading import read

        report = report or Report()
        check_subject(self.entry, self.base, "Name what to measure")
        record = bank.read_record(self.entry) if self.entry is not None else None
        if self.data.startswith(PREFIX):
            self.refuse(*_ROWS_ONLY, where="benchmarks are measured")
            return eval_harness(self, record, report)
        if record and self.style not in ("auto", record.template.style):
            raise TunescopeError(
                f"{self.entry} was made in {record.template.style} style; measuring it in {self.style} style would not "
                "measure what it serves. Leave --style out."
            )
        if self.data.lower().endswith((".yaml", ".yml")):
            unused = ("template", "split", "skip_bad", "generate_rows", "plot", "judge", "n", "skip_unjudged", "by")
            self.refuse(*unused, "annotator", where="a mixture is measured")
            return eval_unseen(self, record, report)
        split = "test" if self.split is None and has_part(self.data, "test") else self.split
        optional: tuple[str, ...] = ()
        if record is not None and record.objective == "attributes":
            optional = attributes_of(record).optional
        table = read(self.data, split=split, skip_bad=self.skip_bad, optional=optional)
        if self.judge:
            self.refuse(*_TASK_ONLY, "max_length", "plot", "by", "annotator", where="completions are judged")
            return eval_judged(self, table, report)
        if record is not None and record.objective == "attributes":
            self.refuse(*_TASK_ONLY, *_SAMPLED_ONLY, "max_new_tokens", "plot", where="an attribute model is measured")
            return eval_attributes(self, record, table, report)
        if self.by or self.annotator is not None:
            self.refuse(*_TASK_ONLY, *_SAMPLED_ONLY, "max_length", "plot", where="steering is measured")
            return eval_steering(self, record, table, report)
        if record is not None and is_preferences(table):
            self.refuse(*_TASK_ONLY, *_SAMPLED_ONLY, "template", "max_new_tokens", where="pairs are measured")
            return eval_pairs(self, record, table, report)
        if record is not None and record.objective == "reward":
            unused = (*_TASK_ONLY, *_SAMPLED_ONLY, "template", "max_new_tokens", "plot")
            self.refuse(*unused, where="a reward model scores texts")
            return score_texts(self, record, table, report)
        self.refuse(*_SAMPLED_ONLY, "plot", where="a task is measured")
        return eval_task(self, record, table, report)

    def refuse(self, *settings: str, where: str) -> None:
        """Refuse settings that were given and say nothing about what is measured.

        Raises:
            SettingError: naming the first.
        """
        for name in settings:
            if name in self.model_fields_set:
                raise SettingError("EvalRequest", name, f"has no meaning where {where}: leave it out")


_ROWS_ONLY = (
    "split", "template", "probe", "all_probes", "generate_rows", "max_new_tokens", "max_length", "skip_bad", "plot",
    "judge", "by", "annotator", "n", "skip_unjudged",
)  # fmt: skip
_TASK_ONLY = ("probe", "all_probes", "generate_rows")
_SAMPLED_ONLY = ("against", "n", "skip_unjudged")
